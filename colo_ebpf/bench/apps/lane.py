# SPDX-License-Identifier: GPL-2.0-only
"""What a lane is: a guest behind something, up for a while, under one load after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from colo_ebpf.bench.apps.loads import Load
from colo_ebpf.bench.apps.readings import Reading
from colo_ebpf.bench.lanes.workload import percentile
from colo_ebpf.control.checkpoint.primary import Cause

MISMATCH = Cause.MISMATCH.value


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Those of one load. `pauses_ms` may be of the last ones only."""

    seconds: float
    by_cause: Mapping[str, int] = field(default_factory=dict)
    pauses_ms: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.by_cause.values())

    def pause_ms(self, fraction: float) -> float:
        """A percentile; 0 without any."""
        return percentile(sorted(self.pauses_ms), fraction) if self.pauses_ms else 0.0

    @property
    def stopped(self) -> float:
        """Share of the time in which the VM stood."""
        if not self.pauses_ms:
            return 0.0
        each_ms = sum(self.pauses_ms) / len(self.pauses_ms)
        return each_ms * self.count / 1000 / self.seconds

    def beyond(self, dated: bool) -> int:
        """Those that two VMs need not take which do the same work: all but one for each new
        second, if that is in what they answer (`dated`)."""
        seconds = math.ceil(self.seconds) if dated else 0
        return self.count - min(seconds, self.by_cause.get(MISMATCH, 0))

    def causes(self) -> str:
        """For people."""
        return told(self.by_cause)


def told(by_cause: Mapping[str, int]) -> str:
    """Causes with their numbers."""
    return ", ".join(f"{cause} {n}" for cause, n in by_cause.items() if n) or "none"


@dataclass(frozen=True, slots=True)
class Measured:
    """One load in one lane, once."""

    reading: Reading
    checkpoints: Checkpoints | None = None  # a lane without a pair has none


class Lane(Protocol):
    """Something a guest is behind."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """The guest serves; nothing is left afterwards. BenchError, LabError, QmpError."""

    async def measure(self, load: Load, seconds: float) -> Measured:
        """Raises BenchError if the client has no answers or what is measured broke."""
