# SPDX-License-Identifier: GPL-2.0-only
"""The bytes of disks go to the peer by NBD, in a thread of the daemon's.

Cancelled, the thread stops before the next piece.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from colo_ebpf.clock import boot_ns
from colo_ebpf.control.qemu.cmdline import VmSpec, lending_path
from colo_ebpf.control.qemu.copy_progress import Advance
from colo_ebpf.control.qemu.digesting import has_digests
from colo_ebpf.control.qemu.lending import Lending
from colo_ebpf.control.qemu.rounds import CHANGES, UNLIKE, OnProgress
from colo_ebpf.control.qemu.stoppable import in_thread
from colo_ebpf.errors import NoDigestsError, StorageError
from colo_ebpf.model import Endpoints, Progress
from colo_ebpf.storage.preflight import digests_of

if TYPE_CHECKING:
    from colo_ebpf.storage.nbd import ExportAddress
    from colo_ebpf.storage.verify import Progress as Told

_log = logging.getLogger(__name__)

_TELL_S = 0.05  # not each piece: of holes there are hundreds of thousands a second
_DIGESTS_LATE_MS = 30_000  # a disk of the peer's that is so slow is better written than read


def _at(to: Endpoints, export: str) -> ExportAddress:
    from colo_ebpf.storage.nbd import ExportAddress

    return ExportAddress(export, to.address, to.nbd_port)


class Carrier:
    """The `Way` of one QEMU's copied disks."""

    def __init__(self, spec: VmSpec, instance: str, lending: Lending) -> None:
        self._spec, self._instance, self._lending = spec, instance, lending

    async def carry(self, bitmap: str, to: Endpoints, progress: OnProgress) -> None:
        """See `Way`."""
        path = lending_path(self._spec)
        await self._lending.changes(path, self._spec.copied_disks, bitmap)
        try:
            await in_thread(partial(self._copy, bitmap, to, self._teller(CHANGES, progress)))
        finally:
            await self._lending.close(path)

    async def take_digests(self, to: Endpoints, *, wanted: bool) -> bool:
        """See `Way`."""
        from colo_ebpf.storage.digests import take

        exports = [_at(to, digests_of(disk.export)) for disk in self._spec.copied_disks]
        wanted = wanted and has_digests(self._spec)
        try:
            return await asyncio.to_thread(take, exports, wanted, self._spec.qmp_timeout_ms)
        except StorageError as e:
            _log.info("%s: no digests of the peer's images: %s", self._instance, e)
            return False

    async def carry_unlike(self, to: Endpoints, progress: OnProgress) -> bool:
        """See `Way`."""
        try:
            carried = await in_thread(
                partial(self._copy_unlike, to, self._teller(UNLIKE, progress))
            )
        except NoDigestsError as e:
            _log.warning("%s: %s", self._instance, e)
            return False
        _log.info("%s: %d bytes were unlike", self._instance, carried)
        return True

    async def end(self) -> None:
        """See `Way`."""
        await self._lending.close(lending_path(self._spec))

    def _copy_unlike(self, to: Endpoints, told: Told, stopped: threading.Event) -> int:
        from colo_ebpf.storage.carry import Pace
        from colo_ebpf.storage.unlike import UnlikeWay, carry_unlike

        spec = self._spec
        ways = [
            UnlikeWay(disk.path, _at(to, digests_of(disk.export)), _at(to, disk.export))
            for disk in spec.copied_disks
        ]
        pace = Pace(spec.disk_rate_bytes, stopped)
        return carry_unlike(ways, pace, spec.sync_timeout_ms, _DIGESTS_LATE_MS, told)

    def _copy(self, bitmap: str, to: Endpoints, told: Told, stopped: threading.Event) -> None:
        from colo_ebpf.storage.carry import Pace, carry
        from colo_ebpf.storage.nbd import ExportAddress

        here = str(lending_path(self._spec))
        ways = [
            (ExportAddress(disk.image, path=here), _at(to, disk.export))
            for disk in self._spec.copied_disks
        ]
        pace = Pace(self._spec.disk_rate_bytes, stopped)
        carry(ways, bitmap, pace, self._spec.sync_timeout_ms, told)

    def _teller(self, what: str, progress: OnProgress) -> Told:
        """What the thread calls."""
        loop, advance = asyncio.get_running_loop(), Advance(self._spec.sync_timeout_ms, boot_ns())

        def tell(done: int, total: int) -> None:
            advance.look(done, (done,), boot_ns())
            progress(Progress(what, done, total, advance.rate_bytes_s))

        told_s = -math.inf

        def from_thread(done: int, total: int) -> None:
            nonlocal told_s
            now_s = time.monotonic()
            if done == total or now_s - told_s >= _TELL_S:
                told_s = now_s
                loop.call_soon_threadsafe(tell, done, total)

        return from_thread
