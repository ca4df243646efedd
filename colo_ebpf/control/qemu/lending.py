# SPDX-License-Identifier: GPL-2.0-only
"""The one NBD server of a QEMU, in QMP: what a primary lets others of its host read, and its end.

A secondary's server, for its peer, is begun in `block.py`; it ends here, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from colo_ebpf.control.qemu.cmdline import DiskSpec, VmSpec
from colo_ebpf.control.qemu.listening import listen
from colo_ebpf.control.qemu.monitor import Monitors
from colo_ebpf.control.qemu.starter import Starter
from colo_ebpf.errors import QmpError, VmError

_log = logging.getLogger(__name__)

_LENDING = "lending"  # a socket that QEMU is given


class Lending:
    """Of one QEMU. At most one is open."""

    def __init__(
        self, spec: VmSpec, instance: str, pid: int, qmp: Monitors, starter: Starter
    ) -> None:
        self._spec, self._instance, self._pid = spec, instance, pid
        self._qmp, self._starter = qmp, starter

    async def images(self, path: Path, disks: Iterable[DiskSpec]) -> None:
        """The local images, for reading."""
        await self._open(path, [_export(disk, disk.image) for disk in disks])

    async def changes(self, path: Path, disks: Iterable[DiskSpec], bitmap: str) -> None:
        """What the guest sees, for reading, with what the bitmap marks. The bitmap is disabled."""
        await self._open(path, [_export(disk, disk.quorum, bitmap=bitmap) for disk in disks])

    async def _open(self, path: Path, exports: list[dict[str, Any]]) -> None:
        await self.close_server()  # what an earlier daemon may have left open
        with listen(path) as socket:
            await self._qmp.give(_LENDING, socket.fileno())
        await self._qmp.run(
            "nbd-server-start",
            addr={"type": "fd", "data": {"str": _LENDING}},
            max_connections=len(exports),
        )
        try:
            for export in exports:
                await self._qmp.run("nbd-server-add", **export)
        except QmpError:
            await self.close(path)
            raise

    async def close(self, path: Path) -> None:
        """The end of what was lent there."""
        await self.close_server()
        path.unlink(missing_ok=True)

    async def close_server(self) -> None:
        """Stop the NBD server; whoever is connected is cut off. VmError if that cannot be done:
        then it is not stopped, for QEMU would wait for them with all else."""
        connections = await self._starter.hang_up(self._pid, self._spec.nbd_port)
        if connections:
            count = len(connections)
            _log.warning("%s: %d were connected to the disk's port", self._instance, count)
        try:
            async with asyncio.timeout(self._spec.qmp_timeout_ms / 1000):
                while not await self._starter.closed(self._pid, connections):
                    await self._qmp.run("query-status")  # a turn of its main loop
        except TimeoutError as e:
            raise VmError(f"{self._instance}: does not close its disk's port") from e
        await self._qmp.ensure("nbd-server-stop")


def _export(disk: DiskSpec, device: str, **more: Any) -> dict[str, Any]:
    """Under the name of the local image, whichever node it is."""
    return {"device": device, "name": disk.image, "writable": False, **more}
