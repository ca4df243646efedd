# SPDX-License-Identifier: GPL-2.0-only
"""What the product promises, and whether a run shows it. Pure."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

from colo_ebpf.bench.results import Results


class Outcome(enum.Enum):
    """Of one target."""

    MET = "met"
    MISSED = "missed"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table."""

    measure: str
    target: str
    found: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Target:
    """`find` gives the figure (None: not measured); `bound` what it may be at least or at most."""

    measure: str
    target: str
    find: Callable[[Results], float | None]
    bound: float
    at_most: bool = False
    unit: str = "x"

    def judge(self, results: Results) -> Verdict:
        """Whether the run shows it."""
        value = self.find(results)
        if value is None or math.isnan(value):
            return Verdict(self.measure, self.target, "", Outcome.NOT_MEASURED)
        met = value <= self.bound if self.at_most else value >= self.bound
        found = f"{value:.3g} {self.unit}"
        return Verdict(self.measure, self.target, found, Outcome.MET if met else Outcome.MISSED)


def _ratio(part: str, measure: str, lane: str, peer: str) -> Callable[[Results], float | None]:
    return lambda results: results.ratio(part, measure, lane, peer)


def _median(part: str, measure: str, lane: str) -> Callable[[Results], float | None]:
    def find(results: Results) -> float | None:
        row = results.row(part, measure, lane)
        return row.median if row else None

    return find


TARGETS: tuple[Target, ...] = ()
