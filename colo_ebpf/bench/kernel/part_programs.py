# SPDX-License-Identifier: GPL-2.0-only
"""What each program costs: ns per frame by path and size, instructions, calls, load time, memory.

A path is what one frame takes through one hook. Its cost is the kernel's own run time of the
programs on it, without what made the frame.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial

from colo_ebpf.bench.kernel import gso, kernel_calls, listing, names
from colo_ebpf.bench.kernel.driver import (
    BLOCK,
    CLIENT_ISN,
    ISN,
    Driver,
    Kind,
    Stream,
    Template,
    of_client,
    require_all,
    segment,
)
from colo_ebpf.bench.results import Recorder
from colo_ebpf.bench.suite import Effort
from colo_ebpf.datapath.bpf import abi, loader
from colo_ebpf.datapath.net import namespaces
from colo_ebpf.errors import BenchError
from colo_ebpf.lab import frames
from colo_ebpf.lab.bed import Bed
from colo_ebpf.model import Mode

PART = "programs"
SIZES = loader.Sizes(flows=16384, hold_slots=4096, dgram_buckets=2048)
_EPOCH = 1
_SVM_LEAD = 7  # the SVM's numbers against the PVM's, where they are rewritten
_STAMPS = frames.timestamps(1000, 2000)
_ARP = bytes.fromhex("ffffffffffff" + frames.VM_MAC.replace(":", "") + "0806") + bytes(46)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it."""

    rounds: int
    frames: int  # in one reading
    payloads: tuple[int, ...]
    large: gso.Scale


QUICK = Scale(rounds=5, frames=10_000, payloads=(64, 1448), large=gso.Scale(3, 50, (11, 44)))
FULL = Scale(
    rounds=15, frames=40_000, payloads=(64, 512, 1448), large=gso.Scale(9, 100, (2, 11, 44))
)


@dataclass(frozen=True, slots=True)
class Step:
    """A stream of frames, and the path each of them takes."""

    path: str
    program: str
    template: Template
    counted: tuple[str, str, str]  # program, verdict and reason that every frame must get


@dataclass(frozen=True, slots=True)
class Case:
    """Steps in turn, a block of each."""

    steps: tuple[Step, ...]
    mode: Mode = Mode.PRIMARY
    paired: bool = True


def run(recorder: Recorder, effort: Effort) -> None:
    """Raises BenchError if a frame took another path."""
    measure(recorder, QUICK if effort.quick else FULL)


def measure(recorder: Recorder, scale: Scale) -> None:
    """The same at any scale."""
    recorder.say(f"{PART}: compiling and loading")
    start = time.monotonic()
    with Bed(f"colob{os.getpid()}", SIZES) as bed:
        recorder.say(f"{PART}: loaded after {time.monotonic() - start:.1f} s")
        listing.add(recorder, PART, bed)
        namespaces.run_in(bed.host, lambda: _paths(recorder, scale, bed))
    recorder.say(f"{PART}: compiling and loading for large frames")
    with gso.GsoBed(f"colob{os.getpid()}", SIZES, link_mtu=gso.MAX_MTU) as big:
        namespaces.run_in(big.host, lambda: gso.paths(recorder, PART, scale.large, big))


# -- the paths --


def _stream_cases(payload: int) -> list[Case]:
    data = segment(payload)

    def step(what: str, vm: str, *counted: str) -> Step:
        program, verdict, reason = counted
        path = names.sized(what, payload)
        return Step(path, f"colo_cmp_{vm}", data, (program, verdict, reason))

    return [
        Case(
            (
                step(names.NOTED, "svm", "cmp-svm", "note", "ahead"),
                step(names.PASSES, "pvm", "cmp-pvm", "pass", "verified"),
            )
        ),
        Case(
            (
                step(names.HELD, "pvm", "cmp-pvm", "hold", "unverified"),
                step(names.CARRIES, "svm", "drain", "carry", "whole"),
            )
        ),
    ]


def _datagram_cases(payload: int) -> list[Case]:
    template = Template(frames.datagram(0, bytes(payload - 4)), Kind.DGRAM)

    def step(what: str, vm: str, verdict: str, reason: str) -> Step:
        path = names.sized(f"UDP, {what}", payload)
        return Step(path, f"colo_cmp_{vm}", template, (f"cmp-{vm}", verdict, reason))

    return [
        Case(
            (
                step(names.NOTED, "svm", "note", "ahead"),
                step(names.PASSES, "pvm", "pass", "verified"),
            )
        ),
        Case(
            (
                step(names.HELD, "pvm", "hold", "unverified"),
                step(names.CARRIES, "svm", "carry", "carried"),
            )
        ),
    ]


def _small_cases() -> list[Case]:
    ack = segment(0)
    arp = Template(_ARP, Kind.AS_IS)
    return [
        Case((Step("the PVM's pure ACK", "colo_cmp_pvm", ack, ("cmp-pvm", "pass", "ack")),)),
        Case((Step("the SVM's pure ACK", "colo_cmp_svm", ack, ("cmp-svm", "note", "ack")),)),
        Case((Step("the PVM's ARP", "colo_cmp_pvm", arp, ("cmp-pvm", "pass", "neighbour")),)),
    ]


def _mirror_cases(payload: int) -> list[Case]:
    body = segment(payload).frame[54:]
    inbound, stamped = of_client(body), of_client(body, _STAMPS)
    out = Template(
        frames.of_vm(ISN + _SVM_LEAD + 1, body, CLIENT_ISN + 1, options=_STAMPS),
        seq=ISN + _SVM_LEAD + 1,
        step=payload,
    )

    def path(what: str) -> str:
        return names.sized(what, payload)

    return [
        Case(
            (
                Step(
                    path("mirror inbound: with the clone through the tunnel"),
                    "colo_mir_cli",
                    inbound,
                    ("mir-cli", "pass", "input"),
                ),
            )
        ),
        Case(
            (
                Step(
                    path("mirror inbound: without a peer, no clone"),
                    "colo_mir_cli",
                    inbound,
                    ("mir-cli", "pass", "no-pair"),
                ),
            ),
            paired=False,
        ),
        Case(
            (
                Step(
                    path("secondary: the client's segment is rewritten"),
                    "colo_mir_link",
                    stamped,
                    ("mir-link", "deliver", "input"),
                ),
                Step(
                    path("secondary: the SVM's segment is rewritten"),
                    "colo_mir_svm",
                    out,
                    ("mir-svm", "link", "plain"),
                ),
            ),
            mode=Mode.SECONDARY,
        ),
    ]


def cases(payloads: tuple[int, ...]) -> list[Case]:
    """All that frames of one MTU can take."""
    found = _small_cases()
    for payload in payloads:
        found += _stream_cases(payload)
        found += _datagram_cases(payload)
        found += _mirror_cases(payload)
    return found


def _paths(recorder: Recorder, scale: Scale, bed: Bed) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    driver = Driver(bed)
    listed = cases(scale.payloads)
    for number, case in enumerate(listed):
        recorder.say(f"{PART}: {case.steps[0].path} ({number + 1} of {len(listed)})")
        _case(recorder, scale, bed, driver, case)
    _calls(recorder, bed, driver, listed)
    driver.close()


def _start(bed: Bed, driver: Driver, case: Case) -> list[Stream]:
    bed.empty()
    bed.pair(_EPOCH, case.mode)
    if case.mode is Mode.PRIMARY:
        driver.connect(1)
    else:
        _learn(bed, driver)
    if not case.paired:
        bed.plane.set_pairing(None)
    return [driver.stream(step.program, step.template) for step in case.steps]


def _learn(bed: Bed, driver: Driver) -> None:
    """The secondary sees a connection opened: the SVM's SYN, and the ACK of the PVM's."""
    flags = frames.SYN | frames.ACK
    syn = frames.of_vm(ISN + _SVM_LEAD, ack=CLIENT_ISN + 1, flags=flags, options=_STAMPS)
    driver.stream("colo_mir_svm", Template(syn, seq=ISN + _SVM_LEAD)).run(1)
    driver.stream("colo_mir_link", of_client(options=_STAMPS)).run(1)
    offsets = bed.map("colo_offs")
    off = abi.Off.from_buffer_copy(offsets.get(offsets.next_key(None) or b"") or b"")
    slot = off.slot[_EPOCH & 1]
    if not slot.flags & abi.OffFlag.DELTA or slot.delta != _SVM_LEAD:
        raise BenchError("the secondary did not learn the offset of the connection")


def _case(recorder: Recorder, scale: Scale, bed: Bed, driver: Driver, case: Case) -> None:
    makers = [stream.maker for stream in _start(bed, driver, case)]
    own = [
        driver.own_ns(maker, step.template) for maker, step in zip(makers, case.steps, strict=True)
    ]
    costs: list[list[float]] = [[] for _ in case.steps]
    for _ in range(scale.rounds):
        streams = _start(bed, driver, case)
        before = [bed.count(*step.counted) for step in case.steps]
        spent = driver.spent(partial(_in_blocks, streams, scale.frames))
        for number, step in enumerate(case.steps):
            found = bed.count(*step.counted) - before[number]
            require_all(bed, found, streams[number].made, step.path)
            costs[number].append(spent[makers[number]].each_ns - own[number])
    for step, values in zip(case.steps, costs, strict=True):
        recorder.add(PART, names.COST, step.path, "ns", values=values)


def _in_blocks(streams: list[Stream], count: int) -> None:
    for _ in range(0, count, BLOCK):
        for stream in streams:
            stream.run()


def _calls(recorder: Recorder, bed: Bed, driver: Driver, listed: list[Case]) -> None:
    """What one frame calls in the kernel, counted over a block of them."""
    with kernel_calls.tracer(max(os.sched_getaffinity(0))) as tracer:
        for case in listed:
            streams = _start(bed, driver, case)
            for stream, step in zip(streams, case.steps, strict=True):
                if tracer is None:
                    why = kernel_calls.WHY
                    recorder.add(PART, names.LOOKUPS, step.path, "calls", values=(), note=why)
                    continue
                bare = driver.bare(stream.maker, step.template)
                calls = tracer.counted(stream.run)
                calls.subtract(tracer.counted(bare.run))
                recorder.add(
                    PART,
                    names.LOOKUPS,
                    step.path,
                    "calls",
                    values=(kernel_calls.lookups(calls, BLOCK),),
                    note=f"helpers: {kernel_calls.readable(calls, BLOCK)}",
                )
