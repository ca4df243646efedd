# SPDX-License-Identifier: GPL-2.0-only
"""A cost as something grows: its curve, and the row of its ratio."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Container

from colo_ebpf.bench.kernel import names
from colo_ebpf.bench.kernel.driver import Driver, Stream
from colo_ebpf.bench.results import Curve, Recorder, number


def curve(
    recorder: Recorder,
    part: str,
    what: str,
    line: str,
    points: dict[float, list[float]],
    *,
    apart: Container[float] = (),
    note: str = "",
) -> None:
    """The medians over `what`; the row is the largest of them over the smallest.

    At the points `apart` something else was measured: they are in the curve and not in the row.
    """
    medians = {at: statistics.median(values) for at, values in points.items()}
    alike = [ns for at, ns in medians.items() if at not in apart]
    recorder.curve(
        Curve(part=part, plot=what, line=line, x=what, y="ns", points=tuple(medians.items()))
    )
    recorder.add(
        part,
        names.growth(what, line),
        names.OURS,
        names.RATIO,
        values=(max(alike) / min(alike),),
        note="ns: " + ", ".join(f"{at:g}: {number(ns)}" for at, ns in medians.items()) + note,
    )


def pair_ns(driver: Driver, work: Callable[[], object], pvm: Stream) -> float:
    """Run time of the programs over some work, for each frame of the PVM."""
    made = pvm.made

    def run() -> None:
        work()

    spent = driver.spent(run, "colo_cmp_pvm")
    return sum(one.ns for one in spent.values()) / (pvm.made - made)
