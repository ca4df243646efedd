# SPDX-License-Identifier: GPL-2.0-only
"""The same loads on the same guests: without protection, behind QEMU's proxy, behind ours.

Repetition by repetition the lanes take turns, so that the n-th readings of the lanes are a pair.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colo_ebpf.bench import names
from colo_ebpf.bench.lanes.cpu import busy_s
from colo_ebpf.bench.lanes.lane import Lane, PlainLane, SecondPlainLane
from colo_ebpf.bench.lanes.limit import LimitLane
from colo_ebpf.bench.lanes.ours import OurLane
from colo_ebpf.bench.lanes.qemu import QemuLane
from colo_ebpf.bench.lanes.wires import guest_cpus, workshop
from colo_ebpf.bench.lanes.workload import (
    DOWNLOAD,
    LIMITED,
    LOADS,
    REQUEST,
    Load,
    Outcome,
    distribution,
)
from colo_ebpf.bench.results import Curve, Recorder
from colo_ebpf.bench.suite import Effort
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.topology import DEFAULT_GUEST_ADDRESS

_KINDS: dict[str, type[Lane]] = {
    names.PLAIN: PlainLane,
    names.QEMU: QemuLane,
    names.OURS: OurLane,
}
_GIVE_UP = 2  # a lane that wedges so often in a row under a load is not asked again
_ATTEMPTS = 50  # connections of the measure of timestamps
_ATTEMPTS_S = 3.0
_PERCENTILES = ((names.P50, 0.5), (names.P99, 0.99), (names.P999, 0.999))


@dataclass(frozen=True, slots=True)
class Plan:
    """How often, how long, and under which loads."""

    repetitions: int
    seconds: float
    loads: tuple[Load, ...] = LOADS


FULL, QUICK = Plan(5, 2.0), Plan(2, 0.5)


@dataclass(frozen=True, slots=True)
class Reading:
    """One run of a load in a lane."""

    outcome: Outcome
    cpu_s: float  # of the whole machine
    bytes: float
    packets: float  # the client's
    requests: Counter[str]  # for checkpoints, by cause


@dataclass(slots=True)
class Readings:
    """Those of one load in one lane."""

    taken: list[Reading] = field(default_factory=list)
    gave_up: bool = False  # it wedged too often in a row, or failed
    error: str = ""  # why it failed

    def note(self) -> str:
        """What went wrong, and in how many repetitions."""
        bad = [one.outcome for one in self.taken if not one.outcome.whole]
        if not bad:
            return self.error
        word = "wedged" if all(one.wedged for one in bad) else "not whole"
        said = f"{word} in {len(bad)} of {len(self.taken)}: {bad[0].trouble() or 'no answer'}"
        if self.wedged:
            said += f" after {max(one.bytes for one in bad) / 1e6:.1f} MB at most"
        if self.error:
            return f"{said}; then {self.error}"
        return f"{said}; not tried again" if self.gave_up else said

    def why(self) -> str:
        """Checkpoints were asked for."""
        causes = sum((one.requests for one in self.taken), Counter[str]())
        return ", ".join(f"{count:,} {cause}" for cause, count in causes.most_common())

    @property
    def wedged(self) -> bool:
        """Every time: there is no rate."""
        return all(one.outcome.wedged for one in self.taken)

    def values(self, unit: str) -> list[float]:
        """Of the load's main figure."""
        return [] if self.wedged else [one.outcome.value(unit) for one in self.taken]


def run(recorder: Recorder, effort: Effort) -> None:
    """All loads in the lanes of `effort`."""
    measure(recorder, effort.lanes, QUICK if effort.quick else FULL)


def measure(recorder: Recorder, lanes: Sequence[str], plan: Plan) -> None:
    """Build the lanes, measure, remove them."""
    with workshop() as directory, contextlib.ExitStack() as stack:
        opened: list[Lane] = []
        for name in lanes:
            recorder.say(f"{names.LANES}: building {name}")
            opened.append(_open(_KINDS[name](directory), stack))
        limit = _open(LimitLane(directory), stack) if names.OURS in lanes else None
        second = _open(SecondPlainLane(directory), stack) if names.PLAIN in lanes else None
        for load in plan.loads:
            with _kept_awake(directory) if load.awake else contextlib.nullcontext():
                asked = [*opened, limit] if limit and load.name in LIMITED else opened
                measure_load(recorder, asked, second, load, plan)
        _measure_offsets(recorder, [lane for lane in opened if lane.name != names.PLAIN])


def _open(lane: Lane, stack: contextlib.ExitStack) -> Lane:
    lane.open()
    stack.callback(lane.close)
    return lane


@contextlib.contextmanager
def _kept_awake(directory: Path) -> Iterator[None]:
    """Both CPUs spin when they have nothing to do: no load waits for one to wake up."""
    argv = [str(directory / "beside"), "spin"]
    spinners = [subprocess.Popen([*argv, str(cpu)]) for cpu in set(guest_cpus())]
    try:
        yield
    finally:
        for one in spinners:
            one.kill()
            one.wait()


# ---- one load ----


def measure_load(
    recorder: Recorder, lanes: Sequence[Lane], second: Lane | None, load: Load, plan: Plan
) -> None:
    """One load in all lanes. Raises BenchError only for a lane that cannot be had again."""
    readings = {lane.name: Readings() for lane in lanes}
    two = second if load in (DOWNLOAD, REQUEST) else None
    plain = lanes[0]  # `second` is there only beside it
    if two is not None:
        readings[two.name] = Readings()
    for _ in range(plan.repetitions):
        for lane in lanes:
            if not readings[lane.name].gave_up:
                _repeat(lane, load, plan.seconds, readings[lane.name])
        if two is not None:
            readings[two.name].taken.append(_both(plain, two, load, plan.seconds))
    for lane in lanes:
        _record(recorder, load, lane.name, readings[lane.name])
    _record_cpu(recorder, load, {name: one.taken for name, one in readings.items()})


def _read(lane: Lane, go: Callable[[], Outcome]) -> Reading:
    lane.wake()
    requests, packets, cpu_s = lane.requests(), lane.packets(), busy_s()
    outcome = go()
    spent_s = busy_s() - cpu_s
    packets = lane.packets() - packets
    lane.rest()
    return Reading(outcome, spent_s, outcome.bytes, packets, lane.requests() - requests)


def _repeat(lane: Lane, load: Load, seconds: float, readings: Readings) -> None:
    try:
        reading = _read(lane, lambda: lane.run(load.argv(seconds), seconds))
    except BenchError as e:  # a QEMU that has ended: no reason to lose what was measured
        readings.gave_up, readings.error = True, str(e)
        lane.renew()
        return
    readings.taken.append(reading)
    last = [one.outcome for one in readings.taken[-_GIVE_UP:]]
    readings.gave_up = len(last) == _GIVE_UP and all(one.wedged for one in last)
    if not reading.outcome.whole or reading.requests:
        lane.renew()


def _both(lane: Lane, second: Lane, load: Load, seconds: float) -> Reading:
    """Two clients and two servers at once; bytes and packets are those of one pair."""
    packets = second.packets()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        beside = pool.submit(second.run, load.argv(seconds), seconds)
        first = _read(lane, lambda: lane.run(load.argv(seconds), seconds))
        other = beside.result()
    return dataclasses.replace(
        first,
        bytes=(first.bytes + other.bytes) / 2,
        packets=(first.packets + second.packets() - packets) / 2,
    )


# ---- rows ----


def _record(recorder: Recorder, load: Load, lane: str, readings: Readings) -> None:
    outcomes, note = [one.outcome for one in readings.taken], readings.note()

    def add(measure: str, unit: str, values: Iterable[float], note: str = note) -> None:
        recorder.add(names.LANES, measure, lane, unit, values=values, note=note)

    add(load.name, load.unit, readings.values(load.unit))
    for name, fraction in _PERCENTILES if load.percentiles else ():
        found = [one.percentile_us(fraction) for one in outcomes]
        add(name.format(load.name), "us", [one for one in found if one is not None])
    if lane not in (names.PLAIN, names.LIMIT):
        asked = [one.requests.total() for one in readings.taken]
        add(names.REQUESTS.format(load.name), "requests", asked, readings.why())
    if load is REQUEST:
        times = sorted(time for one in outcomes for time in one.times_ns)
        recorder.curve(
            Curve(
                part=names.LANES,
                plot=names.LATENCY_PLOT,
                line=lane,
                x="us",
                y="share answered",
                points=distribution(times),
            )
        )


def _record_cpu(recorder: Recorder, load: Load, taken: dict[str, list[Reading]]) -> None:
    """Bulk by bytes, small requests by packets; beyond what two servers cost without a proxy."""
    if load not in (DOWNLOAD, REQUEST):
        return
    measure = names.CPU_PER_GB if load is DOWNLOAD else names.CPU_PER_PACKETS
    costs = {name: [_cost(load, one) for one in found] for name, found in taken.items()}
    for name, found in costs.items():
        note = "two clients and two servers at once, for what one client got"
        values = [cost for cost in found if cost is not None]
        note = note if name == names.TWO else ""
        recorder.add(names.LANES, measure, name, "CPU-s", values=values, note=note)
    for name in (names.QEMU, names.OURS):
        if name in costs and names.TWO in costs:
            pairs = zip(costs[name], costs[names.TWO], strict=False)
            beyond = [a - b for a, b in pairs if a is not None and b is not None]
            measured = names.BEYOND.format(measure)
            recorder.add(names.LANES, measured, name, "CPU-s", values=beyond)


def _cost(load: Load, reading: Reading) -> float | None:
    """None: it wedged, and waited most of the time."""
    units = reading.bytes / 1e9 if load is DOWNLOAD else reading.packets / 1e5
    return None if reading.outcome.wedged or not units else reading.cpu_s / units


# ---- separately booted guests ----


def _measure_offsets(recorder: Recorder, lanes: Sequence[Lane]) -> None:
    """Each guest's TCP timestamps begin elsewhere, as they do when both were booted."""
    argv = ["connect", DEFAULT_GUEST_ADDRESS, "1", str(int(_ATTEMPTS_S * 1000)), str(_ATTEMPTS)]
    for lane in lanes:
        lane.set_timestamps(1, 1, 2)
        lane.wake()
        outcome = lane.run(argv, _ATTEMPTS_S)
        lane.rest()
        note = f"of {_ATTEMPTS} that were tried, in {_ATTEMPTS_S:.0f} s at most"
        recorder.add(
            names.LANES,
            names.OFFSETS,
            lane.name,
            "connections",
            values=[outcome.operations],
            note=note,
        )
