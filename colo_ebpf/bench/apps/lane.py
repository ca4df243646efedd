# SPDX-License-Identifier: GPL-2.0-only
"""What a lane is: a guest behind something, up for a while, under one load after the other."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from colo_ebpf.bench.apps.loads import Load
from colo_ebpf.bench.apps.readings import Reading
from colo_ebpf.bench.workload import percentile

ALONE, TWINS, OURS, STOCK, STOCK_500 = "alone", "twins", "ours", "stock", "stock-500"
LANES = (ALONE, TWINS, OURS, STOCK, STOCK_500)


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

    def causes(self) -> str:
        """For people."""
        return ", ".join(f"{cause} {n}" for cause, n in self.by_cause.items() if n) or "none"


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
