# SPDX-License-Identifier: GPL-2.0-only
"""Shared disks: what the primary's VM overwrites goes to the secondary first, in QMP.

A job per disk (`blockdev-backup` with `sync: none`) puts a filter above the quorum. Before the
first write of a cluster in an epoch the filter copies the old content into the secondary's hidden
overlay, and the guest's write waits for that. So the secondary's VM goes on reading the disk as it
was at the last checkpoint.

A job remembers which clusters it has copied. A checkpoint empties the overlay, so every checkpoint
needs new jobs, begun while the VM stands. From then on the VM may run again in two ways only: the
secondary has loaded that checkpoint, or it never runs again.

If the secondary does not take the old content, the guest's write fails inside QEMU, and the VM
stops (`werror=stop`). The write is done again when the VM runs on without the job. It cannot go by
the job: nobody knows yet which of the two VMs goes on alone.
"""

from __future__ import annotations

import asyncio

from colo_ebpf.control.qemu.cmdline import OLD_JOB, DiskSpec, VmSpec
from colo_ebpf.control.qemu.monitor import Monitors
from colo_ebpf.errors import VmError

_POLL_S = 0.002  # of a job that was cancelled: usually it is gone at the first look


def job_of(disk: DiskSpec) -> str:
    """The job of one disk; its filter has the same name."""
    return f"{OLD_JOB}{disk.number}"


class OldContent:
    """Of all shared disks of one QEMU, a primary."""

    def __init__(self, spec: VmSpec, instance: str, qmp: Monitors) -> None:
        self._spec, self._instance, self._qmp = spec, instance, qmp

    async def begin(self) -> None:
        """A new epoch, in which nothing is overwritten yet. VmError if the VM does not stand, or
        stands because of its disk: a write of it is still to be done, and belongs to the epoch
        before."""
        status = (await self._qmp.run("query-status"))["status"]
        if status not in ("paused", "shutdown"):
            raise VmError(f"{self._instance}: no checkpoint of a shared disk: the VM is {status}")
        await self.end()
        jobs = [{"type": "blockdev-backup", "data": self._job(d)} for d in self._spec.shared_disks]
        await self._qmp.run("transaction", actions=jobs)

    def _job(self, disk: DiskSpec) -> dict[str, str]:
        return {
            "job-id": job_of(disk),
            "filter-node-name": job_of(disk),
            "device": disk.quorum,
            "target": disk.peer_node,
            "sync": "none",
        }

    async def end(self) -> None:
        """No job is left. A write that waits for a connection that is lost fails at once."""
        names = {job_of(disk) for disk in self._spec.shared_disks}
        for name in names & await self._jobs():
            await self._qmp.run("block-job-cancel", device=name, force=True)
        try:
            async with asyncio.timeout(self._spec.qmp_timeout_ms / 1000):
                while names & await self._jobs():
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as e:
            raise VmError(f"{self._instance}: {OLD_JOB} does not end") from e

    async def _jobs(self) -> set[str]:
        return {str(job["id"]) for job in await self._qmp.run("query-jobs")}
