# SPDX-License-Identifier: GPL-2.0-only
"""What a frame costs as things grow: connections, held frames, epochs, VMs, cores.

A cost is the run time of the programs for one frame of the PVM and its counterpart of the SVM. The
row of a curve is its largest median over its smallest.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from functools import partial

from colo_ebpf.bench.kernel import grown_hosts, listing, names
from colo_ebpf.bench.kernel.curves import curve, pair_ns
from colo_ebpf.bench.kernel.driver import BLOCK, Driver, carried_out, in_turn, require_all, segment
from colo_ebpf.bench.results import Recorder
from colo_ebpf.bench.suite import Effort
from colo_ebpf.datapath.bpf import loader
from colo_ebpf.datapath.bpf.syscalls import run_time_kept
from colo_ebpf.datapath.net import namespaces
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.bed import Bed

PART = "growth"
_LINES = 6  # of 64 bytes, that a frame reads or writes of its connection's entry
_HELD_BYTES = 1448
_SLOTS, _BUCKETS, _FLOWS = 4096, 2048, 16384


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it."""

    rounds: int
    frames: int  # of the PVM, in one reading
    flows: tuple[int, ...]  # powers of two; the last is the table's size
    payloads: tuple[int, ...]
    held: tuple[int, ...]
    hosts: grown_hosts.Scale


QUICK = Scale(
    rounds=3,
    frames=32_768,
    flows=(1, 1024, 1 << 20),
    payloads=(1448,),
    held=(1, 1024, 3000, 4000),
    hosts=grown_hosts.Scale(rounds=3, seconds=0.3, frames=16_384, epochs=(0, 10, 1000), vms=(1, 2)),
)
FULL = Scale(
    rounds=5,
    frames=131_072,
    flows=(1, 16, 256, 4096, 65536, 1 << 20),
    payloads=(64, 1448),
    held=(1, 16, 256, 1024, 2048, 3000, 3500, 4000),
    hosts=grown_hosts.Scale(
        rounds=5, seconds=0.5, frames=65_536, epochs=(0, 10, 100, 1000), vms=(1, 2, 4, 8, 16)
    ),
)


def run(recorder: Recorder, effort: Effort) -> None:
    """Curves, and a row for each. Raises BenchError if a frame was not compared."""
    measure(recorder, QUICK if effort.quick else FULL)


def measure(recorder: Recorder, scale: Scale) -> None:
    """The same at any scale."""
    recorder.say(f"{PART}: compiling and loading, room for {scale.flows[-1]} connections")
    sizes = loader.Sizes(scale.flows[-1], _SLOTS, _BUCKETS)
    with run_time_kept():
        free = listing.memory_free_bytes()
        with Bed(f"colob{os.getpid()}", sizes) as bed:
            _memory(recorder, free, bed)
            namespaces.run_in(bed.host, partial(_flows, recorder, scale, bed))
        recorder.say(f"{PART}: compiling and loading, a plane of the usual size")
        sizes = loader.Sizes(min(_FLOWS, scale.flows[-1]), _SLOTS, _BUCKETS)
        with Bed(f"colob{os.getpid()}", sizes) as bed:
            namespaces.run_in(bed.host, partial(_held, recorder, scale, bed))
            namespaces.run_in(bed.host, partial(grown_hosts.run, recorder, PART, scale.hosts, bed))


def _memory(recorder: Recorder, free: int, bed: Bed) -> None:
    """What the largest table takes, whether it is full or not."""
    taken = (free - listing.memory_free_bytes()) / 2**20
    counted = sum(one.bytes for one in listing.maps_of(bed.plane)) / 2**20
    note = "all of it is taken at the start"
    recorder.add(PART, names.MEMORY, names.TOTAL, "MiB", values=(counted,), note=note)
    note = "with what loading left in this process"
    recorder.add(PART, names.MEMORY, names.MACHINE, "MiB", values=(taken,), note=note)


# -- connections --


def _flows(recorder: Recorder, scale: Scale, bed: Bed) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    driver = Driver(bed)
    lines: dict[str, dict[float, list[float]]] = {}
    for payload in scale.payloads:
        for flows in scale.flows:
            recorder.say(f"{PART}: {flows} connections, {payload} B")
            _fresh(bed, driver, flows)
            before = _table_bytes(bed)
            point = lines.setdefault(names.both(payload), {})
            point[flows] = _pairs(bed, driver, payload, flows, scale)
            for name, depth in ((names.LOOK, 1), (names.LOOK_LINES, _LINES)):
                lines.setdefault(name, {})[flows] = _looks(driver, flows, depth, scale)
            if _table_bytes(bed) != before:
                raise BenchError("the flow table's memory has changed")
    for payload in scale.payloads:
        name = names.both(payload)
        lines[names.less_look(name)] = _less(lines[name], lines[names.LOOK])
    for name, points in lines.items():
        curve(recorder, PART, names.FLOWS, name, points)
    driver.close()


def _less(
    cost: dict[float, list[float]], look: dict[float, list[float]]
) -> dict[float, list[float]]:
    """Without what a look-up by itself became dearer since the first point."""
    medians = {flows: statistics.median(values) for flows, values in look.items()}
    first = next(iter(medians.values()))
    return {
        flows: [ns - (medians[flows] - first) for ns in values] for flows, values in cost.items()
    }


def _fresh(bed: Bed, driver: Driver, flows: int) -> None:
    bed.empty()
    bed.pair()
    driver.connect(flows)


def _table_bytes(bed: Bed) -> int:
    return next(one.bytes for one in listing.maps_of(bed.plane) if one.name == "colo_flows")


def _pairs(bed: Bed, driver: Driver, payload: int, flows: int, scale: Scale) -> list[float]:
    """Both VMs' frames, the SVM's first, over all connections in turn."""
    svm, pvm = (driver.stream(f"colo_cmp_{vm}", segment(payload), flows) for vm in ("svm", "pvm"))
    own = sum(driver.own_ns(maker, segment(payload)) for maker in ("bench_link", "bench_run"))
    in_turn(svm, pvm, BLOCK)
    found = []
    for _ in range(scale.rounds):
        before, made = bed.count("cmp-pvm", "pass", "verified"), pvm.made
        found.append(pair_ns(driver, partial(in_turn, svm, pvm, scale.frames), pvm) - own)
        passed = bed.count("cmp-pvm", "pass", "verified") - before
        require_all(bed, passed, pvm.made - made, f"{flows} connections")
    return found


def _looks(driver: Driver, flows: int, lines: int, scale: Scale) -> list[float]:
    """The unavoidable part: both programs read so much of one entry after the other, in the same
    turns as over frames."""
    first, second = driver.look(flows, lines), driver.look(flows, lines)
    return [
        2 * driver.spent(partial(in_turn, first, second, scale.frames))["bench_look"].each_ns
        for _ in range(scale.rounds)
    ]


# -- held frames --


def _held(recorder: Recorder, scale: Scale, bed: Bed) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    driver = Driver(bed)
    own = sum(driver.own_ns(maker, segment(_HELD_BYTES)) for maker in ("bench_link", "bench_run"))
    for place in (names.ELSEWHERE, names.BEHIND):
        points: dict[float, list[float]] = {}
        dropped: dict[float, float] = {}
        for held in scale.held:
            recorder.say(f"{PART}: {held} held frames {place}")
            readings = [
                _with_held(bed, driver, held, place, scale.frames // 4) for _ in range(scale.rounds)
            ]
            points[held] = [cost - own for cost, _ in readings]
            if share := max(share for _, share in readings):
                dropped[held] = share
        listed = ", ".join(f"{at:g}: {share:.0%}" for at, share in dropped.items())
        note = f"; found no slot and were dropped: {listed or 'none'}"
        curve(recorder, PART, names.HELD_FRAMES, place, points, apart=dropped, note=note)
    driver.close()


def _with_held(bed: Bed, driver: Driver, held: int, place: str, count: int) -> tuple[float, float]:
    """The PVM's frame is held, the SVM's carries one out, while so many others wait.

    Returns the cost of both, and the share of the PVM's that found no slot.
    """
    bed.empty()
    bed.pair()
    driver.connect(2)
    mine = 1 if place == names.ELSEWHERE else 0
    data = segment(_HELD_BYTES)
    pvm = driver.stream("colo_cmp_pvm", data, 1, mine)
    svm = driver.stream("colo_cmp_svm", data, 1, mine)
    waiting = pvm if place == names.BEHIND else driver.stream("colo_cmp_pvm", data, 1, 0)
    waiting.run_all(held)
    if bed.plane.held().frames != held:
        raise BenchError(f"{bed.plane.held().frames} of {held} frames are held")
    before = carried_out(bed)
    cost = pair_ns(driver, partial(in_turn, pvm, svm, count), pvm)
    carried = carried_out(bed) - before
    full = bed.count("cmp-pvm", "drop", "store-full")
    if carried + full < svm.made:
        require_all(bed, carried, svm.made, f"{held} held frames {place}")
    return cost, round(full / svm.made, 2)
