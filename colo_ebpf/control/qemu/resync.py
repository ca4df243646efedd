# SPDX-License-Identifier: GPL-2.0-only
"""Make the secondary's images equal to the primary's disks while the guest runs, in QMP.

Three ways. *Mirror*: all of it, while the guest runs. *Changes*: only what was written since the
images were equal, when the secondary's images are the remains of a replica for which this QEMU has
a bitmap; if that is much, in rounds beside the guest first (`rounds.py`). *Unlike*: where the peer
has digests of its images, what has another one, and rounds after that. All end in a pause in which
the exports become quorum children and new bitmaps begin: everything is equal then, for all disks at
one moment. A bitmap counts a write whether or not it reached the child.

The last changes are copied inside that pause, so they have to be few. QEMU's backup job could copy
them beside the guest, but then a secondary that dies fails what the guest writes meanwhile (its
copy-before-write filter breaks the guest's write, not the backup).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from colo_ebpf.clock import boot_ns
from colo_ebpf.control.qemu.bitmaps import Bitmaps, bitmap_of, choose
from colo_ebpf.control.qemu.cmdline import SYNC_JOB, DiskSpec, VmSpec
from colo_ebpf.control.qemu.copy_progress import Advance
from colo_ebpf.control.qemu.monitor import Monitors
from colo_ebpf.control.qemu.rounds import CHANGES, OnProgress, Rounds, Way
from colo_ebpf.errors import QmpError, VmError
from colo_ebpf.model import Endpoints, Progress

_log = logging.getLogger(__name__)

_POLL_S = 0.02  # of a job's progress; its end is an event
_SYNC = "disk synchronisation"
_FAILED = ("concluded", "aborting", "null")
_BUFFER, _LEAST_BUFFER = 10 << 20, 1 << 20  # so much at once; less where the rate is bounded
_FEW_BYTES = 32 << 20  # so much may be copied while the VM stands


def job_of(disk: DiskSpec) -> str:
    """The copy of one disk."""
    return f"{SYNC_JOB}{disk.number}"


class DiskCopy:
    """Of all disks of one QEMU."""

    def __init__(self, spec: VmSpec, instance: str, qmp: Monitors, way: Way) -> None:
        self._spec, self._instance, self._qmp = spec, instance, qmp
        self._bitmaps = Bitmaps(spec, qmp)
        self._rounds, self._way = Rounds(instance, self._bitmaps, way), way
        self._sharing = 0  # disks whose copies share the rate

    async def run(self, to: Endpoints, progress: OnProgress) -> None:
        """The children's nodes are there; at the end they are children."""
        await self._rounds.forget()
        base = choose(await self._bitmaps.recording(), to.replicas)
        digests = await self._way.take_digests(to, wanted=not base)
        if base:
            base = await self._little(base, to, progress)
        elif digests:
            await self._bitmaps.keep_only(())
            base = await self._rounds.unlike(to, _FEW_BYTES, progress)
        if not base:  # from here on the peer's images are no replica of any kind
            await self._bitmaps.keep_only(())
            await self._mirror(progress)
        await self._qmp.run("stop")
        try:
            await (self._changes(base, progress) if base else self._end_mirrors())
            for disk in self._spec.copied_disks:
                await self._qmp.run("x-blockdev-change", parent=disk.quorum, node=disk.peer_node)
            await self._new_bitmaps(to.replicas[-1:])
        finally:
            await self._qmp.run("cont")

    # -- changes -------------------------------------------------------------------------

    async def _little(self, base: str, to: Endpoints, progress: OnProgress) -> str:
        """The bitmap of so little that the VM may stand while it is copied. "": copy all."""
        marked = await self._bitmaps.marked_bytes(base)
        few = marked <= _FEW_BYTES
        where = "while the VM stands" if few else "beside the guest"
        _log.info("%s: %s: %d bytes changed: copied %s", self._instance, base, marked, where)
        if few:
            return base
        left = await self._rounds.run(base, to, _FEW_BYTES, progress)
        if not left:
            _log.info("%s: copying all of the disks", self._instance)
        return left

    async def _changes(self, base: str, progress: OnProgress) -> None:
        """The VM stands. A peer that dies or hangs is let go before it runs again."""
        try:
            await self._copy(base, progress)
        except BaseException:
            for disk in self._spec.copied_disks:
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
            for disk, marked in zip(
                self._spec.copied_disks, await self._bitmaps.recording(), strict=True
            )
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
        try:
            async with asyncio.timeout(limit_ms / 1000):
                await self._until(disks, "concluded", CHANGES, progress, limit_ms=limit_ms)
        except TimeoutError as e:
            raise VmError(f"{self._instance}: {_SYNC}: the VM stood for {limit_ms} ms") from e
        for disk in disks:
            await self._qmp.run("job-dismiss", id=job_of(disk))

    async def _new_bitmaps(self, replicas: tuple[str, ...]) -> None:
        """The VM stands and everything is equal: what was noted before says nothing any more."""
        names = [bitmap_of(instance) for instance in replicas]
        await self._bitmaps.begin(names)
        await self._bitmaps.keep_only(names)

    # -- all of it -----------------------------------------------------------------------

    async def _mirror(self, progress: OnProgress) -> None:
        disks = self._spec.copied_disks
        self._sharing = len(disks)
        speed = self._spec.disk_rate_bytes // len(disks)
        smooth = {"buf_size": max(_LEAST_BUFFER, min(speed // 8, _BUFFER))} if speed else {}
        for disk in disks:
            await self._qmp.run(
                "blockdev-mirror",
                job_id=job_of(disk),
                device=disk.device,
                target=disk.peer_node,
                sync="full",
                on_target_error="report",
                auto_dismiss=False,
                copy_mode="write-blocking",
                speed=speed,
                **smooth,
            )
        await self._until(disks, "ready", "disk", progress, limit_ms=self._spec.sync_timeout_ms)

    async def _end_mirrors(self) -> None:
        for disk in self._spec.copied_disks:
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
        """All their jobs have come so far. VmError if none gets on for `limit_ms`."""
        names, advance = [job_of(disk) for disk in disks], Advance(limit_ms, boot_ns())
        while True:
            jobs = [await self._job(name) for name in names]
            self._refuse_failed(jobs, status)
            done = sum(job.get("current-progress", 0) for job in jobs)
            total = sum(job.get("total-progress", 0) for job in jobs)
            why = advance.look(done, (done, *await self._highest()), boot_ns())
            progress(Progress(what, done, total, advance.rate_bytes_s))
            if all(job["status"] == status for job in jobs):
                return
            if why:
                raise VmError(f"{self._instance}: {_SYNC}: {why}")
            await self._share_rate(jobs)
            await asyncio.sleep(_POLL_S)

    def _refuse_failed(self, jobs: list[dict[str, Any]], status: str) -> None:
        for job in jobs:
            ended = job["status"] in _FAILED and job["status"] != status
            if ended or "error" in job:
                why = job.get("error", "ended")
                raise VmError(f"{self._instance}: {_SYNC}: {job['id']}: {why}")

    async def _highest(self) -> list[int]:
        """The highest bytes written to the peer's exports. A job counts nothing while it fills its
        target with zeroes, which may take long on a block device."""
        found = await self._qmp.run("query-blockstats", query_nodes=True)
        peers = {disk.peer_node for disk in self._spec.copied_disks}
        return [n["stats"]["wr_highest_offset"] for n in found if n.get("node-name") in peers]

    async def _share_rate(self, jobs: list[dict[str, Any]]) -> None:
        """Those that still copy have all of it."""
        copying = [job["id"] for job in jobs if job["status"] == "running"]
        if not self._spec.disk_rate_bytes or not copying or len(copying) >= self._sharing:
            return
        self._sharing = len(copying)
        for name in copying:
            speed = self._spec.disk_rate_bytes // len(copying)
            await self._qmp.run("block-job-set-speed", device=name, speed=speed)

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
        for disk in self._spec.copied_disks:
            try:
                await self._qmp.run("block-job-cancel", device=job_of(disk), force=True)
            except QmpError as e:
                _log.info("not needed or already done: %s", e)
            await self.until_ended(disk)
