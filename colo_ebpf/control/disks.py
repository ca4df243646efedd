# SPDX-License-Identifier: GPL-2.0-only
"""The disks of one QEMU: the way of a block, in QMP. Every step takes all of them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from colo_ebpf.control.cmdline import VmSpec
from colo_ebpf.control.diskcopy import DiskCopy, job_of
from colo_ebpf.control.hangup import closed, hang_up
from colo_ebpf.control.qmp import Monitors
from colo_ebpf.errors import QmpError, VmError
from colo_ebpf.model import Endpoints, LentImage, OverlayUse, Progress
from colo_ebpf.storage import export, overlay
from colo_ebpf.storage.export import LocalDisk

_log = logging.getLogger(__name__)

_FAILED_REQUESTS = (
    "failed_rd_operations",
    "failed_wr_operations",
    "failed_flush_operations",
)


def in_use(files: list[str], nodes: list[dict[str, Any]]) -> bool:
    """QEMU has one of the files open. Only a protocol node is sure to be called like its file:
    what lies above it may be described as JSON."""
    return any(node.get("file") in files for node in nodes)


class Disks:
    """What `Qemu` does with its disks."""

    def __init__(self, spec: VmSpec, instance: str, pid: int, qmp: Monitors) -> None:
        self._spec, self._instance, self._pid, self._qmp = spec, instance, pid, qmp
        self._copy = DiskCopy(spec, instance, qmp)
        self._limit_bytes: list[int] = []

    async def _nodes(self) -> list[dict[str, Any]]:
        return [dict(n) for n in await self._qmp.run("query-named-block-nodes", flat=True)]

    async def _try(self, command: str, **arguments: Any) -> None:
        try:
            await self._qmp.run(command, **arguments)
        except QmpError as e:
            _log.info("not needed or already done: %s", e)

    # -- pairing -------------------------------------------------------------------------

    async def offer(self) -> None:
        """Secondary: export every image for writing."""
        spec = self._spec
        where = {"host": spec.link_address, "port": str(spec.nbd_port)}
        await self._qmp.run("nbd-server-start", addr={"type": "inet", "data": where})
        for disk in spec.disks:
            await self._qmp.run("nbd-server-add", device=disk.image, writable=True)

    async def synchronise(self, to: Endpoints, progress: Callable[[Progress], None]) -> None:
        """Primary: copy every disk to its export live, then make the exports quorum children."""
        await self._check(to)
        server = {"type": "inet", "host": to.address, "port": str(to.nbd_port)}
        for disk in self._spec.disks:
            await self._qmp.run(
                "blockdev-add",
                driver="nbd",
                node_name=disk.peer_node,
                server=server,
                export=disk.image,
                reconnect_delay=self._spec.reconnect_s,
            )
        await self._copy.run(to, progress)

    async def _check(self, to: Endpoints) -> None:
        nodes = {node.get("node-name"): node for node in await self._nodes()}
        local = []
        for disk in self._spec.disks:
            size = int(nodes[disk.quorum]["image"]["virtual-size"])
            local.append(LocalDisk(disk.image, disk.format, size))
        await export.preflight(tuple(local), to.address, to.nbd_port, self._spec.qmp_timeout_ms)

    async def cancel_copy(self) -> None:
        """Of a pairing that is given up."""
        await self._copy.cancel()

    # -- failover ------------------------------------------------------------------------

    async def leave_children(self) -> None:
        """Primary, after the yank and before COLO is left: write to the local images only."""
        for disk in self._spec.disks:
            await self._try("x-blockdev-change", parent=disk.quorum, child="children.1")

    async def forget_children(self) -> None:
        """Primary, out of COLO: the peer's exports are closed."""
        for disk in self._spec.disks:
            await self._try("job-dismiss", id=job_of(disk))
            await self._try("blockdev-del", node_name=disk.peer_node)

    async def withdraw(self) -> None:
        """Secondary: begin to take the exports back: no write of an old primary may come in."""
        for disk in self._spec.disks:
            await self._try("nbd-server-remove", name=disk.image, mode="hard")

    async def withdrawn(self) -> bool:
        """Nothing is exported any more. That says nothing of who is connected."""
        return not await self._qmp.run("query-block-exports")

    async def close_server(self) -> None:
        """Stop the NBD server; whoever is connected is cut off. VmError if that cannot be done:
        then it is not stopped, for QEMU would wait for them with all else."""
        connections = hang_up(self._pid, self._spec.nbd_port)
        if connections:
            count = len(connections)
            _log.warning("%s: %d were connected to the disk's port", self._instance, count)
        try:
            async with asyncio.timeout(self._spec.qmp_timeout_ms / 1000):
                while not closed(self._pid, connections):
                    await self._qmp.run("query-status")  # a turn of its main loop
        except TimeoutError as e:
            raise VmError(f"{self._instance}: does not close its disk's port") from e
        await self._try("nbd-server-stop")

    async def committed(self) -> bool:
        """QEMU has no overlay open any more: all is in the images."""
        overlays = [path for disk in self._spec.disks for path in disk.overlays]
        if in_use([str(path) for path in overlays], await self._nodes()):
            return False
        for path in overlays:
            path.unlink(missing_ok=True)  # they may lie in memory
        return True

    # -- the secondary's overlays -----------------------------------------------------------

    def overlay_use(self) -> tuple[OverlayUse, ...]:
        """How full the overlays are, disk by disk."""
        return tuple(
            OverlayUse(
                disk.number,
                overlay.used_bytes(disk.overlays),
                limit,
                overlay.free_bytes(disk.overlay_dir),
            )
            for disk, limit in zip(self._spec.disks, self._limits(), strict=True)
        )

    def _limits(self) -> list[int]:
        """Taken once: what is free then is what there is to share."""
        if not self._limit_bytes:
            count = len(self._spec.disks)
            self._limit_bytes = [
                disk.overlay_limit_bytes
                or overlay.share_bytes(disk.overlay_dir, disk.overlays, count)
                for disk in self._spec.disks
            ]
        return self._limit_bytes

    async def failed_requests(self) -> int:
        """Requests of the guest that failed since QEMU was started."""
        names = {disk.device for disk in self._spec.disks}
        found = await self._qmp.run("query-blockstats")
        stats = [one["stats"] for one in found if one.get("device") in names]
        return sum(int(one[name]) for one in stats for name in _FAILED_REQUESTS)

    # -- looking -------------------------------------------------------------------------

    async def lend(self, path: Path) -> tuple[LentImage, ...]:
        """Primary: export every local image for reading, on a unix socket."""
        nodes = {node.get("node-name"): node for node in await self._nodes()}
        lent = []
        for disk in self._spec.disks:
            if disk.peer_node not in nodes:
                raise VmError(f"{self._instance}: disk {disk.number} is not replicated")
            to = urlsplit(str(nodes[disk.peer_node]["file"]))
            if not to.hostname or not to.port:
                raise VmError(f"{self._instance}: where disk {disk.number} goes is not known")
            lent.append(LentImage(disk.image, str(path), to.hostname, to.port))
        await self.close_server()  # what an earlier daemon may have left open
        path.unlink(missing_ok=True)
        await self._qmp.run(
            "nbd-server-start",
            addr={"type": "unix", "data": {"path": str(path)}},
            max_connections=len(lent),
        )
        try:
            os.chmod(path, 0o600)
            for one in lent:
                await self._qmp.run("nbd-server-add", device=one.export, writable=False)
        except (OSError, QmpError):
            await self.take_back(path)
            raise
        return tuple(lent)

    async def take_back(self, path: Path) -> None:
        """The end of `lend`."""
        await self.close_server()
        path.unlink(missing_ok=True)
