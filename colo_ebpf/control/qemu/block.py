# SPDX-License-Identifier: GPL-2.0-only
"""The disks of one QEMU: the way of a block, in QMP. Every step takes all that are replicated."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from colo_ebpf.control.qemu import peersocket
from colo_ebpf.control.qemu.carrier import Carrier
from colo_ebpf.control.qemu.cmdline import DiskSpec, VmSpec
from colo_ebpf.control.qemu.digesting import Digesting
from colo_ebpf.control.qemu.lending import Lending
from colo_ebpf.control.qemu.monitor import Monitors
from colo_ebpf.control.qemu.old_content import OldContent
from colo_ebpf.control.qemu.resync import DiskCopy, job_of
from colo_ebpf.control.qemu.starter import Starter
from colo_ebpf.errors import VmError
from colo_ebpf.model import Endpoints, LentImage, OverlayUse, Progress
from colo_ebpf.storage import overlay, preflight
from colo_ebpf.storage.preflight import LocalDisk, is_digests

_log = logging.getLogger(__name__)

_EXPORTS = "exports"  # a socket that QEMU is given
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

    def __init__(
        self, spec: VmSpec, instance: str, pid: int, qmp: Monitors, starter: Starter
    ) -> None:
        self._spec, self._instance, self._qmp = spec, instance, qmp
        self._lending = Lending(spec, instance, pid, qmp, starter)
        self._copy = DiskCopy(spec, instance, qmp, Carrier(spec, instance, self._lending))
        self._old = OldContent(spec, instance, qmp)
        self.digests = Digesting(spec, instance, qmp, starter)
        self._limit_bytes: list[int] = []

    async def _nodes(self) -> list[dict[str, Any]]:
        return [dict(n) for n in await self._qmp.run("query-named-block-nodes", flat=True)]

    # -- pairing -------------------------------------------------------------------------

    async def offer(self, *, known: bool) -> None:
        """Secondary: export every image for writing; of a shared disk, the hidden overlay.

        `known`: the images may be much like the primary's, so it gets digests of them."""
        spec = self._spec
        where = (spec.link_address, spec.nbd_port)
        with peersocket.listen(*where, spec.peer_address, spec.link_device) as socket:
            await self._qmp.give(_EXPORTS, socket.fileno())
        await self._qmp.run("nbd-server-start", addr={"type": "fd", "data": {"str": _EXPORTS}})
        for disk in spec.replicated:
            await self._qmp.run("nbd-server-add", device=disk.export, writable=True)
            if disk.shared:
                await self._lay_over(disk)
        if known:
            await self.digests.offer()

    async def _lay_over(self, disk: DiskSpec) -> None:
        """Put what the guest uses above the hidden overlay, which its export keeps open. It must
        be no drive any more: what a drive reads could not be merged at a takeover."""
        await self._qmp.run("eject", device=disk.hidden_drive)
        active = {"driver": "file", "filename": str(disk.overlays[0])}
        await self._qmp.run(
            "blockdev-add",
            driver="replication",
            mode="secondary",
            top_id=disk.device,
            node_name=disk.replica,
            file={"driver": "qcow2", "file": active, "backing": disk.hidden},
        )
        await self._qmp.run("x-blockdev-change", parent=disk.quorum, node=disk.replica)
        await self._qmp.run("x-blockdev-change", parent=disk.quorum, child="children.0")

    async def synchronise(self, to: Endpoints, progress: Callable[[Progress], None]) -> None:
        """Primary: copy every disk to its export live, then make the exports quorum children.

        Of shared disks nothing is copied: what they had is kept from the first checkpoint on."""
        await self._check(to)
        server = {"type": "inet", "host": to.address, "port": str(to.nbd_port)}
        for disk in self._spec.replicated:
            await self._qmp.run(
                "blockdev-add",
                driver="nbd",
                node_name=disk.peer_node,
                server=server,
                export=disk.export,
                discard="unmap",  # what is zero here takes no room there
                reconnect_delay=self._spec.reconnect_s,
            )
        if self._spec.copied_disks:
            await self._copy.run(to, progress)

    async def begin_epoch(self) -> None:
        """Primary, standing, before each checkpoint: see `OldContent.begin`."""
        if self._spec.shared_disks:
            await self._old.begin()

    async def _check(self, to: Endpoints) -> None:
        nodes = {node.get("node-name"): node for node in await self._nodes()}
        local = []
        for disk in self._spec.replicated:
            size = int(nodes[disk.quorum]["image"]["virtual-size"])
            local.append(LocalDisk(disk.export, disk.format, size, disk.sector_bytes))
        await preflight.preflight(tuple(local), to.address, to.nbd_port, self._spec.qmp_timeout_ms)

    async def cancel_copy(self) -> None:
        """Of a pairing that is given up."""
        await self._copy.cancel()

    # -- failover ------------------------------------------------------------------------

    async def leave_children(self) -> None:
        """Primary, after the yank and before COLO is left: write to the local images only."""
        for disk in self._spec.copied_disks:
            await self._qmp.ensure("x-blockdev-change", parent=disk.quorum, child="children.1")
        await self._old.end()

    async def forget_children(self) -> None:
        """Primary, out of COLO: the peer's exports are closed."""
        for disk in self._spec.replicated:
            await self._qmp.ensure("job-dismiss", id=job_of(disk))
            await self._qmp.ensure("blockdev-del", node_name=disk.peer_node)

    async def withdraw(self) -> None:
        """Secondary: begin to take the exports back: no write of an old primary may come in."""
        for disk in self._spec.replicated:
            await self._qmp.ensure("nbd-server-remove", name=disk.export, mode="hard")

    async def withdrawn(self) -> bool:
        """Nothing is exported any more. That says nothing of who is connected."""
        left = await self._qmp.run("query-block-exports")
        if any(is_digests(one["id"]) for one in left):
            await self.digests.withdraw()
        return not left

    async def close_server(self) -> None:
        """See `Lending.close_server`."""
        await self._lending.close_server()

    async def committed(self) -> bool:
        """QEMU has no overlay open any more: all is in the images."""
        overlays = [path for disk in self._spec.replicated for path in disk.overlays]
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
            for disk, limit in zip(self._spec.replicated, self._limits(), strict=True)
        )

    def _limits(self) -> list[int]:
        """Taken once: what is free then is what there is to share."""
        if not self._limit_bytes:
            count = len(self._spec.replicated)
            self._limit_bytes = [
                disk.overlay_limit_bytes
                or overlay.share_bytes(disk.overlay_dir, disk.overlays, count)
                for disk in self._spec.replicated
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
        """Primary: export every local image for reading, on a unix socket.

        Raises VmError if a disk is not replicated, or QEMU refuses.
        """
        nodes = {node.get("node-name"): node for node in await self._nodes()}
        lent = []
        for disk in self._spec.replicated:
            if disk.peer_node not in nodes:
                raise VmError(f"{self._instance}: disk {disk.number} is not replicated")
            to = urlsplit(str(nodes[disk.peer_node]["file"]))
            if not to.hostname or not to.port:
                raise VmError(f"{self._instance}: where disk {disk.number} goes is not known")
            where = (to.hostname, to.port)
            lent.append(LentImage(disk.image, str(path), disk.export, *where, disk.shared))
        await self._lending.images(path, self._spec.replicated)
        return tuple(lent)

    async def take_back(self, path: Path) -> None:
        """The end of `lend`."""
        await self._lending.close(path)
