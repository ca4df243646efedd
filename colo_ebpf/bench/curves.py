# SPDX-License-Identifier: GPL-2.0-only
"""A cost as something grows: its curve, and the row of its ratio."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from colo_ebpf.bench import names_kernel as names
from colo_ebpf.bench.driver import Driver, Stream
from colo_ebpf.bench.results import Curve, Recorder, number


def curve(
    recorder: Recorder,
    part: str,
    what: str,
    line: str,
    points: dict[float, list[float]],
    *,
    note: str = "",
) -> None:
    """The medians over `what`; the row is the largest of them over the smallest."""
    medians = {at: statistics.median(values) for at, values in points.items()}
    recorder.curve(
        Curve(part=part, plot=what, line=line, x=what, y="ns", points=tuple(medians.items()))
    )
    recorder.add(
        part,
        names.growth(what, line),
        names.OURS,
        names.RATIO,
        values=(max(medians.values()) / min(medians.values()),),
        note="ns: " + ", ".join(f"{at:g}: {number(ns)}" for at, ns in medians.items()) + note,
    )


def pair_ns(driver: Driver, work: Callable[[], object], pvm: Stream) -> float:
    """Run time of the programs over some work, for each frame of the PVM."""
    made = pvm.made

    def run() -> None:
        work()

    spent = driver.spent(run, "colo_cmp_pvm")
    return sum(one.ns for one in spent.values()) / (pvm.made - made)
