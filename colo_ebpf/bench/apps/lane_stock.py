# SPDX-License-Identifier: GPL-2.0-only
"""The same guest under QEMU's own COLO, with its own settings."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from colo_ebpf.bench.apps.clients import Where
from colo_ebpf.bench.apps.lane import Checkpoints, Measured
from colo_ebpf.bench.apps.loads import Load
from colo_ebpf.bench.pair.stock import StockPair
from colo_ebpf.clock import boot_ns
from colo_ebpf.lab.topology import Guest, client_namespace


class StockLane:
    """With QEMU's period of 20 s between checkpoints, or another one."""

    def __init__(self, name: str, guest: Guest, period_ms: int = 0) -> None:
        self._where = Where(client_namespace(name), guest.address)
        self._pair = StockPair(name, guest, guest.accel)
        self._period_ms = period_ms

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """In COLO; the period is set after that."""
        async with self._pair.running():
            await self._pair.checkpoint_ms()  # the first one copies all of the memory
            if self._period_ms:
                await self._pair.every(self._period_ms)
            yield

    async def measure(self, load: Load, seconds: float) -> Measured:
        """QEMU does not say why it took a checkpoint."""
        since_ns, since = boot_ns(), time.monotonic()
        reading = await load.run(self._where, seconds)
        took_s, pauses = time.monotonic() - since, self._pair.pauses_ms(since_ns)
        return Measured(reading, Checkpoints(took_s, {"any": len(pauses)}, pauses))
