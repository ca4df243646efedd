# SPDX-License-Identifier: GPL-2.0-only
"""What a secondary tells of its old images, so that the primary copies what is unlike (QMP).

The daemon makes digests of the images, and QEMU exports their files beside the images. They are
there until the migration comes: by then the disks are equal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial

from colo_ebpf.control.host import access
from colo_ebpf.control.qemu.cmdline import DiskSpec, VmSpec
from colo_ebpf.control.qemu.monitor import Monitors
from colo_ebpf.control.qemu.starter import Starter
from colo_ebpf.control.qemu.stoppable import in_thread
from colo_ebpf.errors import ColoError, StorageError
from colo_ebpf.storage.preflight import digests_of

_log = logging.getLogger(__name__)


def has_digests(spec: VmSpec) -> bool:
    """Digests are made of raw images alone: those of another format only QEMU can read."""
    return bool(spec.copied_disks) and all(disk.format == "raw" for disk in spec.copied_disks)


class Digesting:
    """Of one QEMU's images."""

    def __init__(self, spec: VmSpec, instance: str, qmp: Monitors, starter: Starter) -> None:
        self._spec, self._instance, self._qmp, self._starter = spec, instance, qmp, starter
        self._making: asyncio.Task[None] | None = None

    async def offer(self) -> None:
        """Export the digests, and begin to make them. Without them the disks are copied whole."""
        from colo_ebpf.storage import digests

        if not has_digests(self._spec):
            return
        try:
            for disk in self._spec.copied_disks:
                await asyncio.to_thread(digests.prepare, disk.digests, disk.path)
                await asyncio.to_thread(access.grant, disk.digests, self._starter.user)
                await self._export(disk, digests_of(disk.export))
        except ColoError as e:
            _log.warning("%s: the disks will be copied whole: %s", self._instance, e)
        else:
            self._making = asyncio.create_task(self._make())

    async def _export(self, disk: DiskSpec, name: str) -> None:
        file = {"driver": "file", "filename": str(disk.digests)}
        await self._qmp.run("blockdev-add", driver="raw", node_name=name, file=file)
        await self._qmp.run("nbd-server-add", device=name, writable=True)

    async def _make(self) -> None:
        from colo_ebpf.storage import digests

        try:
            for disk in self._spec.copied_disks:
                if not await in_thread(partial(digests.make, disk.digests, disk.path)):
                    return
            _log.info("%s: digests of the old images are made", self._instance)
        except StorageError as e:
            _log.warning("%s: the disks will be copied whole: %s", self._instance, e)

    async def end(self) -> None:
        """The images are a replica's by now."""
        if self._making is not None:
            await self.withdraw()

    async def withdraw(self) -> None:
        """Begin to take the exports back, also those of a daemon before this one."""
        self.discard()
        for disk in self._spec.copied_disks:
            name = digests_of(disk.export)
            await self._qmp.ensure("nbd-server-remove", name=name, mode="hard")
            await self._qmp.ensure("blockdev-del", node_name=name)

    def discard(self) -> None:
        """Make no more, and let go of the room. Who has the files open keeps them."""
        if self._making is not None:
            self._making.cancel()
        for disk in self._spec.copied_disks:
            with contextlib.suppress(OSError):
                disk.digests.unlink(missing_ok=True)
