# SPDX-License-Identifier: GPL-2.0-only
"""Copy what a bitmap marks beside the guest, in rounds, as a migration does the memory.

Each round copies what was written during the one before. When little is left the VM may stand
while that is copied (`resync.py`). The bitmap of the replica goes on all the while: if a copy
breaks off, the next one begins with all that it marks.

The daemon carries the bytes itself, from an export of this host to the peer's. A job of QEMU would
fail the guest's writes with the peer: see `resync.py`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from colo_ebpf.clock import boot_ns
from colo_ebpf.control.qemu.bitmaps import Bitmaps, round_of
from colo_ebpf.control.qemu.cmdline import VmSpec, lending_path
from colo_ebpf.control.qemu.copy_progress import Advance
from colo_ebpf.control.qemu.lending import Lending
from colo_ebpf.errors import QmpError
from colo_ebpf.model import Endpoints, Progress

_log = logging.getLogger(__name__)

CHANGES = "changes of the disk"

OnProgress = Callable[[Progress], None]


class Way(Protocol):
    """How the bytes get to the peer."""

    async def carry(self, bitmap: str, to: Endpoints, progress: OnProgress) -> None:
        """Copy what it marks; it marks nothing more. Raises StorageError, VmError, QmpError."""

    async def end(self) -> None:
        """Let go of the bitmap that a daemon before this one may have been about to copy."""


class Rounds:
    """Of all disks of one QEMU."""

    def __init__(self, instance: str, bitmaps: Bitmaps, way: Way) -> None:
        self._instance, self._bitmaps, self._way = instance, bitmaps, way

    async def forget(self) -> None:
        """What is left of a copy that broke off. QmpError, VmError: it cannot be removed."""
        if await self._bitmaps.in_rounds():
            await self._way.end()
            await self._bitmaps.drop_rounds()

    async def run(self, base: str, to: Endpoints, few_bytes: int, progress: OnProgress) -> str:
        """The bitmap of what is left, few bytes. "": the guest writes as fast as they are copied,
        or QEMU cannot do it. Raises StorageError or VmError if the peer is lost."""
        try:
            await self._bitmaps.begin_rounds(base)
            return await self._until_few(to, few_bytes, progress)
        except QmpError as e:
            _log.warning("%s: cannot copy only what has changed: %s", self._instance, e)
            return ""

    async def _until_few(self, to: Endpoints, few_bytes: int, progress: OnProgress) -> str:
        number, before = 0, await self._bitmaps.marked_bytes(round_of(0))
        while True:
            await self._way.carry(round_of(number), to, progress)
            await self._bitmaps.drop(round_of(number))
            number += 1
            left = await self._bitmaps.marked_bytes(round_of(number))
            _log.info("%s: %d bytes copied, %d changed meanwhile", self._instance, before, left)
            if left <= few_bytes:
                return round_of(number)
            if left >= before:
                return ""
            await self._bitmaps.next_round(number)
            before = left


class Carrier:
    """The `Way` by NBD, in a thread. Cancelled, it stops before the next piece."""

    def __init__(self, spec: VmSpec, lending: Lending) -> None:
        self._spec, self._lending = spec, lending

    async def carry(self, bitmap: str, to: Endpoints, progress: OnProgress) -> None:
        """See `Way`."""
        path = lending_path(self._spec)
        await self._lending.changes(path, self._spec.copied_disks, bitmap)
        stopped = threading.Event()
        try:
            await asyncio.to_thread(self._copy, bitmap, to, stopped, self._teller(progress))
        finally:
            stopped.set()
            await self._lending.close(path)

    async def end(self) -> None:
        """See `Way`."""
        await self._lending.close(lending_path(self._spec))

    def _copy(
        self, bitmap: str, to: Endpoints, stopped: threading.Event, told: Callable[[int, int], None]
    ) -> None:
        from colo_ebpf.storage.carry import Pace, carry
        from colo_ebpf.storage.nbd import ExportAddress

        here = str(lending_path(self._spec))
        ways = [
            (
                ExportAddress(disk.image, path=here),
                ExportAddress(disk.export, to.address, to.nbd_port),
            )
            for disk in self._spec.copied_disks
        ]
        pace = Pace(self._spec.disk_rate_bytes, stopped)
        carry(ways, bitmap, pace, self._spec.sync_timeout_ms, told)

    def _teller(self, progress: OnProgress) -> Callable[[int, int], None]:
        """What the thread calls."""
        loop, advance = asyncio.get_running_loop(), Advance(self._spec.sync_timeout_ms, boot_ns())

        def tell(done: int, total: int) -> None:
            advance.look(done, (done,), boot_ns())
            progress(Progress(CHANGES, done, total, advance.rate_bytes_s))

        def from_thread(done: int, total: int) -> None:
            loop.call_soon_threadsafe(tell, done, total)

        return from_thread
