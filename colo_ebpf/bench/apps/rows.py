# SPDX-License-Identifier: GPL-2.0-only
"""What was found, as rows of the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from colo_ebpf.bench.apps import names
from colo_ebpf.bench.apps.lane import Checkpoints, Measured, told
from colo_ebpf.bench.apps.loads import Load
from colo_ebpf.bench.apps.rounds import Found, Rounds
from colo_ebpf.bench.results import Recorder


def record(recorder: Recorder, rounds: Rounds, lanes: Sequence[str], loads: Sequence[Load]) -> None:
    """Every load in every lane."""
    for load in loads:
        for lane in lanes:
            found = rounds.found.get((lane, load.key))
            if found is not None:
                _load(recorder, load, lane, found)


def _load(recorder: Recorder, load: Load, lane: str, found: Found) -> None:
    note = names.BROKE + found.broke if found.broke else found.left_out
    rates = [one.reading.rate for one in found.readings]
    recorder.add(names.PART, load.name, lane, load.unit, values=rates, note=note)
    _times(recorder, load, lane, found.readings)
    pairs = [one.checkpoints for one in found.readings if one.checkpoints is not None]
    if pairs:
        _checkpoints(recorder, load, lane, pairs)


def _times(recorder: Recorder, load: Load, lane: str, readings: Sequence[Measured]) -> None:
    figures = {
        names.P50: [one.reading.p50_ms for one in readings],
        names.P99: [one.reading.p99_ms for one in readings],
        names.LONGEST: [one.reading.longest_ms for one in readings],
    }
    for name, values in figures.items():
        measure = name.format(load.name)
        recorder.add(names.PART, measure, lane, "ms", values=values, aloud=False)


def _checkpoints(recorder: Recorder, load: Load, lane: str, taken: Sequence[Checkpoints]) -> None:
    seconds = sum(one.seconds for one in taken)
    causes = told(sum((Counter(one.by_cause) for one in taken), Counter[str]()))
    note = f"{causes} in {seconds:.0f} s"
    figures: list[tuple[str, str, Callable[[Checkpoints], float]]] = [
        (names.CHECKPOINTS, "/min", lambda one: one.count * 60 / one.seconds),
        (names.PAUSE_P50, "ms", lambda one: one.pause_ms(0.5)),
        (names.PAUSE_P99, "ms", lambda one: one.pause_ms(0.99)),
        (names.STOPPED, "%", lambda one: 100 * one.stopped),
    ]
    if load.same and lane == names.OURS:
        figures.append((names.NEEDLESS, "/min", lambda one: _beyond(one, load) * 60 / one.seconds))
    for name, unit, figure in figures:
        measure, values = name.format(load.name), [figure(one) for one in taken]
        recorder.add(names.PART, measure, lane, unit, values=values, note=note, aloud=False)


def _beyond(one: Checkpoints, load: Load) -> int:
    return one.beyond(load.dated)
