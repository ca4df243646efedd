# SPDX-License-Identifier: GPL-2.0-only
"""How long something took, each time, since the daemon runs: counted, as Prometheus counts it."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Any

# From the checkpoint of an idle guest to one that clients take for an outage.
BOUNDS_NS = tuple(
    int(ms * 1_000_000)
    for ms in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
)


class Histogram:
    """Spans in nanoseconds, each in the narrowest bound that holds it."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_NS) + 1)  # the last one: longer than any bound
        self._sum_ns = 0

    def add(self, span_ns: int) -> None:
        """One more."""
        self._counts[bisect_left(BOUNDS_NS, span_ns)] += 1
        self._sum_ns += span_ns

    def plain(self) -> dict[str, Any]:
        """`up_to`: seconds, and how many took no longer; `count` and `sum_s` are of all."""
        reached = list(accumulate(self._counts))
        bounds_s = [bound_ns / 1e9 for bound_ns in BOUNDS_NS]
        return {
            "up_to": [list(pair) for pair in zip(bounds_s, reached, strict=False)],
            "count": reached[-1],
            "sum_s": self._sum_ns / 1e9,
        }
