# SPDX-License-Identifier: GPL-2.0-only
"""What a target is, and how it is judged. Pure."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

from colo_ebpf.bench.results import Results

Find = Callable[[Results], float | None]
_REACHED = 0.9


class Outcome(enum.Enum):
    """Of one target."""

    MET = "met"
    LIMIT = "missed, at the limit"
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
    """`find` gives the figure (None: not measured); `bound` what it may be at least or at most.

    `share` is how much of what this machine can do at all was reached: from `_REACHED` on that is
    all there is.
    """

    measure: str
    target: str
    find: Find
    bound: float
    at_most: bool = False
    unit: str = "x"
    share: Find = lambda _: None

    def judge(self, results: Results) -> Verdict:
        """Whether the run shows it."""
        value = self.find(results)
        if value is None or math.isnan(value):
            return Verdict(self.measure, self.target, "", Outcome.NOT_MEASURED)
        found = f"{value:.3g} {self.unit}"
        if value <= self.bound if self.at_most else value >= self.bound:
            return Verdict(self.measure, self.target, found, Outcome.MET)
        share = self.share(results)
        if share is None:
            return Verdict(self.measure, self.target, found, Outcome.MISSED)
        found += f", {share:.0%} of the limit"
        outcome = Outcome.LIMIT if share >= _REACHED else Outcome.MISSED
        return Verdict(self.measure, self.target, found, outcome)
