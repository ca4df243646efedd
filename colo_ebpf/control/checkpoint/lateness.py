# SPDX-License-Identifier: GPL-2.0-only
"""How late the SVM usually is, from what the data plane has counted. Pure.

The counts of the data plane grow for ever. What was long ago says little of now: each new count
pushes the old ones down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from colo_ebpf.model import Lateness, late_within_ns

SHARE = 0.99  # of the answers: what is usual
_MEMORY = 512  # counts that outweigh all before them
_FEW = 8  # counts that do not yet say what is usual


@dataclass(slots=True)
class _Row:
    """One yardstick: counts as they were last read, and what they weigh."""

    seen: tuple[int, ...] = ()
    weights: list[float] = field(default_factory=list)

    def read(self, counts: Sequence[int]) -> None:
        before = self.seen or (0,) * len(counts)
        fresh = [max(0, count - old) for count, old in zip(counts, before, strict=False)]
        keeps = max(0.0, 1 - sum(fresh) / _MEMORY)
        weights = self.weights or [0.0] * len(counts)
        self.weights = [w * keeps + new for w, new in zip(weights, fresh, strict=False)]
        self.seen = tuple(counts)

    def within_ns(self, share: float) -> int | None:
        if sum(self.weights) < _FEW:
            return None
        return late_within_ns(self.weights, share)


@dataclass(slots=True)
class Yardstick:
    """What `Lateness` says of the last few hundred late answers."""

    _usual: _Row = field(default_factory=_Row)
    _loaded: _Row = field(default_factory=_Row)

    def read(self, lateness: Lateness) -> None:
        """The data plane's counts as they are now."""
        self._usual.read(lateness.usual)
        self._loaded.read(lateness.loaded)

    def usual_ns(self, share: float = SHARE) -> int | None:
        """Nearly all answers are no later than this; None: too few were late to tell."""
        return self._usual.within_ns(share)

    def loaded_ns(self, share: float = SHARE) -> int | None:
        """The same of answers soon after a load."""
        return self._loaded.within_ns(share)
