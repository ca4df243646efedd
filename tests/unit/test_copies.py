# SPDX-License-Identifier: GPL-2.0-only
"""Replicas made again and again, by the real copier on a toy of QEMU's block layer.

Hosts change places, die and reboot, copies break off anywhere, the guest writes all the while.
Whenever the copier says that the disks are equal they are, whichever way it chose.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control import settings
from colo_ebpf.control.qemu import resync
from colo_ebpf.control.qemu.cmdline import DiskSpec, VmSpec
from colo_ebpf.control.qemu.resync import DiskCopy
from colo_ebpf.control.qemu.rounds import OnProgress
from colo_ebpf.control.qemu.vm import data_generation_of
from colo_ebpf.control.state.images import DataGeneration
from colo_ebpf.errors import QmpError, StorageError, VmError
from colo_ebpf.model import Endpoints, Progress

_BLOCKS, _DISKS, _ROUNDS = 24, 2, 30
_BLOCK_BYTES = 1 << 24  # as the copier counts: two may be copied while the VM stands
_TICKS = 5  # what may happen between two commands
Images = list[list[int]]


@dataclass
class Job:
    """A copy under way: the values it will write; None: a mirror, all as it is by then."""

    disk: int
    left: list[int]
    values: dict[int, int] | None = None
    bitmap: str = ""
    marks: set[int] = field(default_factory=set)  # what the bitmap had, if it comes to nothing
    status: str = "running"
    error: str = ""


class ToyQemu:
    """A primary: quorums over its host's images and, when they are attached, another's."""

    def __init__(self, rng: random.Random, images: Images) -> None:
        self.rng, self.images = rng, images
        self.peer: Images | None = None
        self.doom = -1  # ticks until the secondary dies; negative: it does not
        self.children: set[int] = set()
        self.bitmaps: list[dict[str, set[int]]] = [{} for _ in images]
        self.disabled: list[set[str]] = [set() for _ in images]
        self.lent = ""  # the bitmap that is being copied
        self.digested: Images | None = None  # what the peer's images were
        self.following: Images | None = None
        self.jobs: dict[str, Job] = {}
        self.runs, self.shaky, self.whole = True, False, 0
        self.ways: set[str] = set()

    # -- what happens meanwhile ----------------------------------------------------------

    def tick(self) -> None:
        """The guest writes, jobs go on, the secondary may die."""
        for _ in range(self.rng.randrange(_TICKS)):
            if self.runs and self.rng.random() < 0.3:
                self.write()
            for job in self.jobs.values():
                self._advance(job)
            self.doom -= 1
            if self.doom == 0:
                self.lose()

    def write(self) -> None:
        """Of the guest; it reaches the other images through a child or a mirror."""
        disk, block = self.rng.randrange(_DISKS), self.rng.randrange(_BLOCKS)
        value = self.rng.getrandbits(60)
        self.images[disk][block] = value
        for name, marks in self.bitmaps[disk].items():
            if name not in self.disabled[disk]:
                marks.add(block)
        mirrors = any(
            j.values is None and j.disk == disk and j.status in ("running", "ready")
            for j in self.jobs.values()
        )
        lost = 0 <= self.doom < 3 and self.rng.random() < 0.5  # on the way while it dies
        if self.peer is not None and (disk in self.children or mirrors) and not lost:
            self.peer[disk][block] = value

    def _advance(self, job: Job) -> None:
        if job.status != "running":
            return
        if self.peer is None:
            job.status, job.error = "concluded", "connection lost"
            if job.bitmap:
                self.bitmaps[job.disk][job.bitmap] |= job.marks
        elif job.left:
            block = job.left.pop()
            values = job.values
            copied = self.images[job.disk][block] if values is None else values[block]
            self.peer[job.disk][block] = copied
        else:
            job.status = "ready" if job.values is None else "concluded"

    def lose(self) -> None:
        """The secondary is gone."""
        self.peer = None
        self.children.clear()

    # -- monitor -------------------------------------------------------------------------

    async def run(self, command: str, **words: Any) -> Any:
        """As `Monitors.run`. An answer may be late: the command was carried out, or never came."""
        self.tick()
        late = self.shaky and self.rng.random() < 0.02
        if late and self.rng.random() < 0.5:
            raise QmpError("no answer in time")
        answer = getattr(self, "_" + command.replace("-", "_"))(**words)
        if late:
            raise QmpError("no answer in time")
        return answer

    async def run_oob(self, command: str, **_: Any) -> None:
        """The connection is shut: what waits for it fails."""
        assert command == "yank"
        self.tick()
        if self.rng.random() < 0.1:
            raise QmpError("no such instance")

    def _need_peer(self) -> Images:
        if self.peer is None:
            raise QmpError("connection lost")
        return self.peer

    def _stop(self) -> None:
        self.runs = False

    def _cont(self) -> None:
        if len(self.children) == _DISKS and self.peer is not None:
            assert self.peer == self.images
            assert self.shaky or all(len(one) == 1 for one in self.bitmaps)
            self.whole += 1
        self.runs = True

    def _query_named_block_nodes(self, flat: bool) -> list[dict[str, Any]]:
        assert flat
        return [
            {
                "node-name": f"quorum{disk}",
                "dirty-bitmaps": [
                    {
                        "name": name,
                        "count": len(marks) * _BLOCK_BYTES,
                        "recording": name not in self.disabled[disk],
                    }
                    for name, marks in bitmaps.items()
                ],
            }
            for disk, bitmaps in enumerate(self.bitmaps)
        ]

    def _transaction(self, actions: list[dict[str, Any]]) -> None:
        """Nothing happens between them."""
        for one in actions:
            getattr(self, "_" + one["type"].replace("-", "_"))(**one["data"])

    def _block_dirty_bitmap_add(self, node: str, name: str, disabled: bool = False) -> None:
        if name in self.bitmaps[int(node[-1])]:
            assert name.startswith("colo-"), "no round begins before the last is forgotten"
            raise QmpError(f"bitmap already exists: {name}")
        self.bitmaps[int(node[-1])][name] = set()
        if disabled:
            self.disabled[int(node[-1])].add(name)

    def _block_dirty_bitmap_merge(self, node: str, target: str, bitmaps: list[str]) -> None:
        for name in bitmaps:
            self.bitmaps[int(node[-1])][target] |= self.bitmaps[int(node[-1])][name]

    def _block_dirty_bitmap_disable(self, node: str, name: str) -> None:
        self.disabled[int(node[-1])].add(name)

    def _block_dirty_bitmap_remove(self, node: str, name: str) -> None:
        if name == self.lent:
            raise QmpError(f"bitmap {name} is in use")
        del self.bitmaps[int(node[-1])][name]
        self.disabled[int(node[-1])].discard(name)

    async def carry(self, bitmap: str, to: Endpoints, progress: OnProgress) -> None:
        """As `Carrier.carry`: what is read may be written to a moment later. The daemon may die."""
        self.lent = bitmap
        for disk, bitmaps in enumerate(self.bitmaps):
            assert bitmap in self.disabled[disk]
            for block in sorted(bitmaps[bitmap]):
                value = self.images[disk][block]
                self.tick()
                if self.peer is None:
                    if self.rng.random() < 0.5:  # else nobody cleans up
                        await self.end()
                    raise StorageError("connection lost")
                self.peer[disk][block] = value
        await self.end()
        self.ways.add("rounds")

    async def take_digests(self, to: Endpoints, *, wanted: bool) -> bool:
        """As `Carrier.take_digests`: once."""
        found, self.digested = self.digested, None
        self.following = found if wanted else None
        self.tick()
        return self.following is not None

    async def carry_unlike(self, to: Endpoints, progress: OnProgress) -> bool:
        """As `Carrier.carry_unlike`: the digests are those of what was there when they were taken.
        The peer's daemon may die, and no more digests come."""
        assert self.following is not None
        for disk, blocks in enumerate(self.following):
            for block, theirs in enumerate(blocks):
                if self.rng.random() < 0.003:
                    return False
                ours = self.images[disk][block]
                self.tick()
                if self.peer is None:
                    raise StorageError("connection lost")
                if ours != theirs:
                    self.peer[disk][block] = ours
        self.ways.add("unlike")
        return True

    async def end(self) -> None:
        """As `Carrier.end`."""
        self.lent = ""

    def _blockdev_backup(self, job_id: str, device: str, bitmap: str, **words: Any) -> None:
        """The blocks that are marked, as they are now; the bitmap begins anew."""
        self._need_peer()
        assert (words["sync"], words["bitmap_mode"]) == ("bitmap", "on-success")
        assert not self.runs, "what a guest writes beside it fails when the peer dies"
        disk = int(device[-1])
        marks = self.bitmaps[disk][bitmap]
        self.bitmaps[disk][bitmap] = set()
        values = {block: self.images[disk][block] for block in marks}
        self.jobs[job_id] = Job(disk, list(marks), values, bitmap, marks)
        self.ways.add("changes")

    def _blockdev_mirror(self, job_id: str, device: str, **words: Any) -> None:
        self._need_peer()
        assert (words["sync"], words["copy_mode"]) == ("full", "write-blocking")
        self.jobs[job_id] = Job(int(device[-1]), list(range(_BLOCKS)))
        self.ways.add("all")

    def _query_jobs(self) -> list[dict[str, Any]]:
        shown = []
        for name, job in self.jobs.items():
            one = {"id": name, "status": job.status, "current-progress": 0, "total-progress": 0}
            shown.append(one | ({"error": job.error} if job.error else {}))
        return shown

    def _query_blockstats(self, query_nodes: bool) -> list[dict[str, Any]]:
        assert query_nodes
        return [
            {"node-name": f"nbd{disk}", "stats": {"wr_highest_offset": 0}} for disk in range(_DISKS)
        ]

    def _block_job_cancel(self, device: str, force: bool = False) -> None:
        job = self.jobs.get(device)
        if job is None:
            raise QmpError("no such job")
        if job.status == "running":
            assert force, "it is not ready"
            self.bitmaps[job.disk].get(job.bitmap, set()).update(job.marks)
        job.status = "concluded"

    def _job_dismiss(self, id: str) -> None:
        assert self.jobs.pop(id).status == "concluded"

    def _x_blockdev_change(self, parent: str, node: str) -> None:
        self._need_peer()
        assert int(parent[-1]) == int(node[-1])
        self.children.add(int(node[-1]))


class History:
    """Two hosts, one VM. `serving` is the host it runs on."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.rng = random.Random(seed)
        self.specs = [_spec(directory / host) for host in "ab"]
        self.images: list[Images] = [[[0] * _BLOCKS for _ in range(_DISKS)] for _ in "ab"]
        self.serving, self.number = 0, 0
        self.qemu = self._start()

    def _start(self) -> ToyQemu:
        """A primary writes to the images, be it from a start or after a takeover."""
        self._data_generation(self.serving).end()
        return ToyQemu(self.rng, self.images[self.serving])

    def _data_generation(self, host: int) -> DataGeneration:
        return data_generation_of(self.specs[host])

    async def pair(self) -> None:
        """Make a replica on the other host; whether that goes well is chance."""
        other, qemu = 1 - self.serving, self.qemu
        self.number += 1
        instance = f"{'ab'[other]}/{self.number:016x}"
        self._data_generation(other).begin(instance)
        qemu.peer = self.images[other]
        known = self.rng.random() < 0.7  # else the host is new
        qemu.digested = [list(blocks) for blocks in qemu.peer] if known else None
        qemu.doom = self.rng.randrange(1, 120) if self.rng.random() < 0.4 else -1
        qemu.shaky = self.rng.random() < 0.2
        to = Endpoints("192.0.2.2", 1, 2, self._data_generation(other).replicas())
        monitors: Any = qemu
        copy = DiskCopy(self.specs[self.serving], "P", monitors, qemu)
        for _ in range(2):
            try:
                await copy.run(to, _nothing)
            except (VmError, StorageError):
                lost = qemu.peer is None
                await self._leave(copy)
                if lost:
                    return
                qemu.peer = self.images[other]  # the same secondary is tried again
            else:
                return

    async def _leave(self, copy: DiskCopy) -> None:
        """As a primary that gives a pairing up."""
        self.qemu.shaky = False
        self.qemu.lose()
        await copy.cancel()
        for name in list(self.qemu.jobs):
            await self.qemu.run("job-dismiss", id=name)
        await self.qemu.run("cont")

    async def live(self) -> None:
        """Paired or alone, until something dies or a new replica is made."""
        qemu = self.qemu
        for _ in range(self.rng.randrange(8)):
            qemu.tick()
        paired = len(qemu.children) == _DISKS and qemu.peer is not None
        event = self.rng.choice(("secondary", "secondary", "reboot", "primary", "back", "restart"))
        if event == "primary" and paired:
            self.serving = 1 - self.serving
            self.qemu = self._start()
        elif event == "back" and paired:
            self._handed_back(1 - self.serving)
        elif event == "restart" and self.rng.random() < 0.3:
            qemu.lose()
            self.qemu = self._start()
        else:
            qemu.doom = self.rng.randrange(1, 4)
            while qemu.peer is not None:
                qemu.tick()
            if event == "reboot":
                self._reboot(1 - self.serving)
        for _ in range(self.rng.randrange(6)):
            self.qemu.tick()

    def _handed_back(self, host: int) -> None:
        """It took over, wrote, and could not go on: the old primary does, with its bitmaps."""
        self._data_generation(host).end()
        for image in self.images[host]:
            image[self.rng.randrange(_BLOCKS)] = -1
        self.qemu.lose()

    def _reboot(self, host: int) -> None:
        """/run is empty, and what no flush had made durable may be lost."""
        (self.specs[host].run_dir / "replicas.json").unlink(missing_ok=True)
        for image in self.images[host]:
            image[self.rng.randrange(_BLOCKS)] = -1


def _nothing(progress: Progress) -> None:
    pass


def _spec(directory: Path) -> VmSpec:
    directory.mkdir()
    spec = settings.vm_spec(parse_config(EXAMPLE, Path("example")), "kvm")
    disks = [replace(spec.disks[0], number=n, path=directory / f"disk{n}") for n in range(_DISKS)]
    for disk in disks:
        assert isinstance(disk, DiskSpec)
        disk.path.touch()
    return replace(spec, disks=tuple(disks), run_dir=directory)


@pytest.mark.parametrize("batch", range(10))
async def test_disks_that_are_called_equal_are(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resync, "_POLL_S", 0.0)
    whole, ways = 0, set()
    for seed in range(batch * 8, batch * 8 + 8):
        history = History(seed, _made(tmp_path / str(seed)))
        for _ in range(_ROUNDS):
            before = history.qemu.whole
            await history.pair()
            whole += history.qemu.whole - before
            ways |= history.qemu.ways
            await history.live()
    assert whole > 20
    assert ways == {"changes", "rounds", "unlike", "all"}


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory
