# SPDX-License-Identifier: GPL-2.0-only
"""Make the secondary's images equal to the primary's disks while the guest runs, in QMP.

Two ways. *Mirror*: all of it, while the guest runs. *Changes*: only what was written since the
images were equal, when the secondary's images are the remains of a replica for which this QEMU has
a bitmap. Both end in a pause in which the exports become quorum children and new bitmaps begin:
everything is equal then, for all disks at one moment. A bitmap counts a write whether or not it
reached the child.

Changes are copied inside that pause, so they have to be few. QEMU's backup job could copy them
beside the guest, but then a secondary that dies fails what the guest writes meanwhile (its
copy-before-write filter breaks the guest's write, not the backup).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from colo_ebpf.control.cmdline import SYNC_JOB, DiskSpec, VmSpec
from colo_ebpf.control.qmp import Monitors
from colo_ebpf.errors import QmpError, VmError
from colo_ebpf.model import Endpoints, Progress

_log = logging.getLogger(__name__)

_POLL_S = 0.02  # of a job's progress; its end is an event
_FAILED = ("concluded", "aborting", "null")
_PREFIX = "colo-"
_FEW_BYTES = 32 << 20  # so much may be copied while the VM stands

OnProgress = Callable[[Progress], None]


def job_of(disk: DiskSpec) -> str:
    """The copy of one disk."""
    return f"{SYNC_JOB}{disk.number}"


def bitmap_of(instance: str) -> str:
    """Of what was written since this secondary was equal."""
    return _PREFIX + instance.replace("/", "-")


def choose(bitmaps: Iterable[Mapping[str, int]], replicas: Iterable[str]) -> str:
    """The bitmap that every disk has, of the newest replica; "": there is none, copy all."""
    every = list(bitmaps)
    for instance in reversed(tuple(replicas)):
        name = bitmap_of(instance)
        if every and all(name in one for one in every):
            return name
    return ""


class DiskCopy:
    """Of all disks of one QEMU."""

    def __init__(self, spec: VmSpec, instance: str, qmp: Monitors) -> None:
        self._spec, self._instance, self._qmp = spec, instance, qmp

    async def run(self, to: Endpoints, progress: OnProgress) -> None:
        """The children's nodes are there; at the end they are children."""
        base = choose(await self._bitmaps(), to.replicas)
        if base and not await self._few(base):
            base = ""
        if not base:
            await self._drop_bitmaps()
            await self._mirror(progress)
        await self._qmp.run("stop")
        try:
            await (self._changes(base, progress) if base else self._end_mirrors())
            for disk in self._spec.disks:
                await self._qmp.run("x-blockdev-change", parent=disk.quorum, node=disk.peer_node)
            await self._new_bitmaps(to.replicas[-1:])
        finally:
            await self._qmp.run("cont")

    # -- changes -------------------------------------------------------------------------

    async def _bitmaps(self) -> list[dict[str, int]]:
        """Of each disk, by name: bytes that are marked."""
        nodes = await self._qmp.run("query-named-block-nodes", flat=True)
        by_name = {node["node-name"]: node.get("dirty-bitmaps", []) for node in nodes}
        return [
            {
                one["name"]: one["count"]
                for one in by_name[disk.quorum]
                if one.get("name", "").startswith(_PREFIX) and one["recording"]
            }
            for disk in self._spec.disks
        ]

    async def _few(self, base: str) -> bool:
        """Little enough to let the VM stand while it is copied."""
        marked = sum(one[base] for one in await self._bitmaps())
        few = marked <= _FEW_BYTES
        way = "copying only those" if few else "copying all of the disks"
        _log.info("%s: %s: %d bytes changed: %s", self._instance, base, marked, way)
        return few

    async def _changes(self, base: str, progress: OnProgress) -> None:
        """The VM stands. A peer that dies or hangs is let go before it runs again."""
        try:
            await self._copy(base, progress)
        except BaseException:
            for disk in self._spec.disks:
                node = {"type": "block-node", "node-name": disk.peer_node}
                await self._try_oob("yank", instances=[node])
            await self.cancel()
            raise

    async def _try_oob(self, command: str, **arguments: Any) -> None:
        try:
            await self._qmp.run_oob(command, **arguments)
        except QmpError as e:
            _log.info("not needed or already done: %s", e)

    async def _copy(self, base: str, progress: OnProgress) -> None:
        """A job that fails leaves all marks."""
        disks = [
            disk
            for disk, marked in zip(self._spec.disks, await self._bitmaps(), strict=True)
            if marked[base]
        ]
        for disk in disks:
            await self._qmp.run(
                "blockdev-backup",
                job_id=job_of(disk),
                device=disk.quorum,
                target=disk.peer_node,
                sync="bitmap",
                bitmap=base,
                bitmap_mode="on-success",
                on_target_error="report",
                auto_dismiss=False,
            )
        limit_ms = self._spec.hang_timeout_ms
        await self._until(disks, "concluded", "changes of the disk", progress, limit_ms=limit_ms)
        for disk in disks:
            await self._qmp.run("job-dismiss", id=job_of(disk))

    async def _new_bitmaps(self, replicas: tuple[str, ...]) -> None:
        """The VM stands and everything is equal: what was noted before says nothing any more."""
        old = await self._bitmaps()
        for instance in replicas:
            for disk in self._spec.disks:
                await self._qmp.run(
                    "block-dirty-bitmap-add", node=disk.quorum, name=bitmap_of(instance)
                )
        await self._drop(old)

    async def _drop_bitmaps(self) -> None:
        """Before all is copied: from then on the peer's images are no replica of any kind."""
        await self._drop(await self._bitmaps())

    async def _drop(self, bitmaps: list[dict[str, int]]) -> None:
        for disk, names in zip(self._spec.disks, bitmaps, strict=True):
            for name in names:
                await self._qmp.run("block-dirty-bitmap-remove", node=disk.quorum, name=name)

    # -- all of it -----------------------------------------------------------------------

    async def _mirror(self, progress: OnProgress) -> None:
        for disk in self._spec.disks:
            await self._qmp.run(
                "blockdev-mirror",
                job_id=job_of(disk),
                device=disk.device,
                target=disk.peer_node,
                sync="full",
                on_target_error="report",
                auto_dismiss=False,
                copy_mode="write-blocking",
            )
        limit_ms = self._spec.sync_timeout_ms
        await self._until(self._spec.disks, "ready", "disk", progress, limit_ms=limit_ms)

    async def _end_mirrors(self) -> None:
        for disk in self._spec.disks:
            await self._qmp.run("block-job-cancel", device=job_of(disk))
            await self.until_ended(disk)
            await self._qmp.run("job-dismiss", id=job_of(disk))

    # -- jobs ----------------------------------------------------------------------------

    async def _until(
        self,
        disks: Iterable[DiskSpec],
        status: str,
        what: str,
        progress: OnProgress,
        *,
        limit_ms: int,
    ) -> None:
        """All their jobs have come so far."""
        names = [job_of(disk) for disk in disks]
        try:
            async with asyncio.timeout(limit_ms / 1000):
                while not await self._are(names, status, what, progress):
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as e:
            raise VmError(f"{self._instance}: disk synchronisation: not done in time") from e

    async def _are(self, names: list[str], status: str, what: str, progress: OnProgress) -> bool:
        jobs = [await self._job(name) for name in names]
        for job in jobs:
            ended = job["status"] in _FAILED and job["status"] != status
            if ended or "error" in job:
                raise VmError(
                    f"{self._instance}: disk synchronisation: {job['id']}: "
                    f"{job.get('error', 'ended')}"
                )
        done = sum(job["current-progress"] for job in jobs)
        progress(Progress(what, done, sum(job["total-progress"] for job in jobs)))
        return all(job["status"] == status for job in jobs)

    async def _job(self, name: str) -> dict[str, Any]:
        for job in await self._qmp.run("query-jobs"):
            if job["id"] == name:
                return dict(job)
        return {"id": name, "status": "null"}

    async def until_ended(self, disk: DiskSpec) -> None:
        """Its job is over. Raises VmError."""
        name = job_of(disk)
        try:
            async with asyncio.timeout(self._spec.qmp_timeout_ms / 1000):
                while (await self._job(name))["status"] not in ("concluded", "null"):
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as e:
            raise VmError(f"{self._instance}: {name} does not end") from e

    async def cancel(self) -> None:
        """Of a pairing that is given up. They are over when this returns: a node that one still
        uses could not be removed, and the next pairing would find its name taken."""
        for disk in self._spec.disks:
            try:
                await self._qmp.run("block-job-cancel", device=job_of(disk), force=True)
            except QmpError as e:
                _log.info("not needed or already done: %s", e)
            await self.until_ended(disk)
