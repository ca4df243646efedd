# SPDX-License-Identifier: GPL-2.0-only
"""The comparer alone, without hosts and guests: QEMU's `colo-compare` and the shipped programs.

Both get the same frames, the two VMs' copies of one TCP stream, in the same order. A rate is the
PVM's frames that were compared and let out, per second of the comparer's CPU:

- QEMU: CPU time of its process. The comparer is all it does; reading frames from its sockets and
  writing them to the next is part of that, for there is no other way into it.
- the limit, where the PVM is first: the run time of programs that look up, hash, copy and send, as
  any comparer has to that keeps what it has not compared, and do nothing else
  (`bpf/bench/bench.c`).
- ours: the kernel's own run time of the programs. They run where the frame already is. What the
  host's network stack spends before and behind them it would spend in either case; that is in the
  row of the wall clock, over real devices.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.bench.kernel import names
from colo_ebpf.bench.kernel.driver import (
    BLOCK,
    CLIENT_ISN,
    ISN,
    LEAST,
    Driver,
    Stream,
    carried_out,
    in_turn,
    require_all,
    segment,
)
from colo_ebpf.bench.kernel.feeder import QemuFeeder
from colo_ebpf.bench.results import Recorder
from colo_ebpf.bench.suite import Effort
from colo_ebpf.datapath.bpf import loader
from colo_ebpf.datapath.net import namespaces
from colo_ebpf.lab import frames
from colo_ebpf.lab.bed import Bed, tunnelled

PART = "alone"
_SIZES = loader.Sizes(flows=1024, hold_slots=4096, dgram_buckets=2048)
_PATIENCE_S = 2.0
_CPU = -1  # the comparer's: the last
_SYN_ACK = frames.SYN | frames.ACK


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it."""

    rounds: int
    frames: int  # of the PVM, in one reading
    wire_frames: int


QUICK = Scale(rounds=3, frames=20_000, wire_frames=6_000)
FULL = Scale(rounds=9, frames=60_000, wire_frames=20_000)


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one comparer over one stream."""

    compared: int
    cpu_ns: float
    wall_ns: float


def run(recorder: Recorder, effort: Effort) -> None:
    """Rows per payload size and order of arrival. Raises BenchError if a frame was not compared."""
    measure(recorder, QUICK if effort.quick else FULL)


def measure(recorder: Recorder, scale: Scale) -> None:
    """The same at any scale."""
    with Bed(f"colob{os.getpid()}", _SIZES) as bed:
        namespaces.run_in(bed.host, lambda: _measure(recorder, scale, bed))


def _measure(recorder: Recorder, scale: Scale, bed: Bed) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[_CPU]})
    driver = Driver(bed)
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as directory:
        for payload in names.PAYLOADS:
            for order in names.ORDERS:
                lanes: dict[str, Callable[[], Reading]] = {
                    names.QEMU: _qemu(Path(directory), payload, order, scale.frames, cpus),
                    names.OURS: _ours(bed, driver, payload, order, scale.frames),
                    names.WIRE: _wire(bed, driver, payload, order, scale.wire_frames),
                }
                if order == names.PVM_FIRST:
                    lanes[names.LEAST] = _least(bed, driver, payload, scale.frames)
                _rows(recorder, lanes, names.compare(payload, order), scale.rounds)
    driver.close()


def _rows(
    recorder: Recorder, lanes: dict[str, Callable[[], Reading]], measure_name: str, rounds: int
) -> None:
    found: dict[str, list[Reading]] = {lane: [] for lane in lanes}
    for number in range(rounds):
        recorder.say(f"{PART}: {measure_name}: {number + 1} of {rounds}")
        for lane, read in lanes.items():
            found[lane].append(read())
    for lane, readings in found.items():
        total = sum(one.compared for one in readings)
        note = f"{total} frames, all compared and let out; {names.CPU_OF[lane]}"
        rates = [one.compared / one.cpu_ns * 1e9 for one in readings]
        recorder.add(PART, measure_name, lane, names.RATE, values=rates, note=note)
    for lane, readings in found.items():
        rates = [one.compared / one.wall_ns * 1e9 for one in readings]
        measure = names.wall(measure_name)
        recorder.add(PART, measure, lane, names.RATE, values=rates, note=names.WALL_OF[lane])


# -- QEMU --


def _qemu(
    directory: Path, payload: int, order: str, count: int, cpus: list[int]
) -> Callable[[], Reading]:
    """A fresh QEMU for each reading: it forgets no connection."""
    body = segment(payload).frame[54:]
    greeting = frames.of_vm(ISN, ack=CLIENT_ISN + 1, flags=_SYN_ACK)
    data = [
        frames.of_vm(ISN + 1 + n * payload, body, CLIENT_ISN + 1) for n in range(count)
    ]  # made once for all readings

    def read() -> Reading:
        with QemuFeeder(directory) as qemu:
            qemu.pin(cpus[_CPU])
            os.sched_setaffinity(0, {cpus[0]})
            try:
                qemu.both([greeting], order == names.SVM_FIRST)
                cpu, start = qemu.cpu_ns(), time.perf_counter_ns()
                qemu.both(data, order == names.SVM_FIRST)
                wall = time.perf_counter_ns() - start
                return Reading(count, qemu.cpu_ns() - cpu, wall)
            finally:
                os.sched_setaffinity(0, {cpus[_CPU]})

    return read


# -- ours, run where they are --


def _start(bed: Bed, driver: Driver) -> None:
    bed.empty()
    bed.pair()
    driver.connect(1)


def _let_out(bed: Bed, order: str, wire: bool = False) -> int:
    """Data frames that leave; over devices, and no copies: that the tap has let in once more."""
    if order == names.SVM_FIRST:
        return bed.count("cmp-pvm", "pass", "verified")
    if wire:
        return bed.count("cmp-pvm", "pass", "released")
    return carried_out(bed)


def check(bed: Bed, order: str, before: int, count: int, wire: bool = False) -> None:
    """Each frame was compared and let out; a few may still be on their way through the host."""
    deadline = time.monotonic() + _PATIENCE_S
    while (out := _let_out(bed, order, wire) - before) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    require_all(bed, out, count, "compared and let out")
    require_all(bed, bed.plane.held().frames, 0, "left in the store")


def _ours(bed: Bed, driver: Driver, payload: int, order: str, count: int) -> Callable[[], Reading]:
    template = segment(payload)
    own = {maker: driver.own_ns(maker, template) for maker in ("bench_run", "bench_link")}

    def read() -> Reading:
        _start(bed, driver)
        streams = [driver.stream(f"colo_cmp_{vm}", template) for vm in ("svm", "pvm")]
        before = _let_out(bed, order)
        spent = driver.spent(lambda: _fill(streams, order, count), "colo_cmp_pvm", "colo_last_out")
        check(bed, order, before, streams[1].made)
        cpu = float(sum(one.ns for one in spent.values()))
        cpu -= sum(own[maker] * spent[maker].runs for maker in own)
        return Reading(streams[1].made, cpu, sum(stream.wall_ns for stream in streams))

    return read


def _least(bed: Bed, driver: Driver, payload: int, count: int) -> Callable[[], Reading]:
    """The order in which the PVM's frame is kept and the SVM's leaves for it, and the way out."""
    template = segment(payload)
    own_ns = driver.own_ns("bench_run", template)

    def read() -> Reading:
        _start(bed, driver)
        pvm, svm = (driver.least(maker, template) for maker in LEAST)
        before = _let_out(bed, names.PVM_FIRST)
        spent = driver.spent(lambda: in_turn(pvm, svm, count), "colo_cmp_pvm", "colo_last_out")
        check(bed, names.PVM_FIRST, before, svm.made)
        cpu = sum(one.ns for one in spent.values()) - own_ns * (pvm.made + svm.made)
        return Reading(svm.made, cpu, pvm.wall_ns + svm.wall_ns)

    return read


def _fill(streams: list[Stream], order: str, count: int) -> None:
    svm, pvm = streams
    in_turn(*((svm, pvm) if order == names.SVM_FIRST else (pvm, svm)), count)


# -- ours, over devices --


def _wire(bed: Bed, driver: Driver, payload: int, order: str, count: int) -> Callable[[], Reading]:
    """The PVM's frames are written to the tap, the SVM's come over the tunnel."""
    body = segment(payload).frame[54:]
    greeting = frames.of_vm(ISN, ack=CLIENT_ISN + 1, flags=_SYN_ACK)
    data = [frames.of_vm(ISN + 1 + n * payload, body, CLIENT_ISN + 1) for n in range(count)]
    inner = [tunnelled(frame, 1) for frame in data]

    def pvm(start: int) -> None:
        for frame in data[start : start + BLOCK]:
            bed.from_vm_raw(frame)

    def svm(start: int) -> None:
        for frame in inner[start : start + BLOCK]:
            bed.send_to_link(frame)

    both = (svm, pvm) if order == names.SVM_FIRST else (pvm, svm)

    def work() -> None:
        for start in range(0, count, BLOCK):
            for send in both:
                send(start)

    def read() -> Reading:
        bed.empty()
        bed.pair()
        bed.from_peer_raw(greeting, 1)
        bed.from_vm_raw(greeting)
        check(bed, names.SVM_FIRST, 0, 1)
        before = _let_out(bed, order, wire=True)
        start = time.perf_counter_ns()
        spent = driver.spent(work, "colo_cmp_pvm", "colo_cmp_svm", "colo_last_out")
        wall = time.perf_counter_ns() - start
        check(bed, order, before, count, wire=True)
        return Reading(count, sum(one.ns for one in spent.values()), wall)

    return read
