# SPDX-License-Identifier: GPL-2.0-only
"""Reserves a VM's shared disks for this host, whatever the storage does meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from colo_ebpf.errors import StorageError
from colo_ebpf.storage import reservation


@dataclass(slots=True)
class Reservations:
    """Of one VM; `own`, `other`: keys of the two hosts."""

    paths: tuple[Path, ...]
    own: int
    other: int
    timeout_ms: int
    _running: asyncio.Task[None] | None = field(default=None, init=False)

    async def take(self) -> None:
        """Returns when all are reserved; raises StorageError.

        A call to a storage that does not answer cannot be ended: the next time it is waited for
        again.
        """
        if self._running is None:
            self._running = asyncio.create_task(asyncio.to_thread(self._take_all))
        running = self._running
        done, _ = await asyncio.wait({running}, timeout=self.timeout_ms / 1000)
        if not done:
            names = ", ".join(map(str, self.paths))
            raise StorageError(f"{names}: not reserved within {self.timeout_ms} ms: no answer")
        self._running = None
        running.result()

    def _take_all(self) -> None:
        for path in self.paths:
            reservation.take(path, self.own, self.other)
