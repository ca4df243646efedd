# SPDX-License-Identifier: GPL-2.0-only
"""How long to wait before the next attempt to pair: twice as long after each one that failed.

A peer that was started again, its daemon or its host, is another one: what failed before says
nothing about it.
"""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_NS, _LONGEST_NS = 1_000_000_000, 30_000_000_000
_MOST = 8  # doublings: far beyond the longest


@dataclass(slots=True)
class BackOff:
    """`until_ns`: no attempt before it, on the boot clock. `total`: attempts that failed, ever."""

    until_ns: int = 0
    why: str = ""  # of the last that failed, until one comes to something
    total: int = 0
    _failures: int = 0
    _boot: str = ""

    def failed(self, now_ns: int, why: str = "") -> None:
        """An attempt to pair has come to nothing."""
        self.why = why
        self.until_ns = now_ns + min(_FIRST_NS << self._failures, _LONGEST_NS)
        self._failures = min(self._failures + 1, _MOST)
        self.total += 1

    def paired(self) -> None:
        """One came to something."""
        self._failures, self.why = 0, ""

    def hear(self, boot: str, now_ns: int) -> None:
        """The peer's daemon is this run of it. A rest goes on for as long as a first one at most:
        a daemon that dies of every attempt must not keep the serving VM busy."""
        if boot != self._boot:
            self._boot, self._failures = boot, 0
            self.until_ns = min(self.until_ns, now_ns + _FIRST_NS)
