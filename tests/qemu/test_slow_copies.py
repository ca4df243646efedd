# SPDX-License-Identifier: GPL-2.0-only
"""Copies that take longer than any deadline succeed; those that stand are given up."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from colo_ebpf.clock import boot_ns
from colo_ebpf.control.qemu.vm import Qemu
from colo_ebpf.errors import QmpError, VmError
from colo_ebpf.model import Progress, VmRole
from tests.capabilities import require
from tests.qemu.pair import Pair, Side, checkpoint, until
from tests.qemu.test_disks import verify

LIMIT_MS = 2000
DISK_BYTES, DISK_RATE = 16 << 20, 4 << 20
MEMORY_RATE = 8 << 20


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "qemu", "guest")


class Seen:
    """What is told of progress, and for how long."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.all: list[tuple[int, Progress]] = []
        self._then = then

    def __call__(self, progress: Progress) -> None:
        self.all.append((boot_ns(), progress))
        self._then()

    @property
    def lasted_ms(self) -> int:
        return (self.all[-1][0] - self.all[0][0]) // 1_000_000

    @property
    def rates(self) -> set[int]:
        return {progress.rate_bytes_s for _, progress in self.all} - {0}


def _slowly(side: Side) -> Qemu:
    """The same QEMU, asked by one who has little time and leaves the link to others."""
    spec = dataclasses.replace(
        side.spec,
        sync_timeout_ms=LIMIT_MS,
        start_timeout_ms=LIMIT_MS,
        disk_rate_bytes=DISK_RATE,
        memory_rate_bytes=MEMORY_RATE,
    )
    side.vm._spec = side.vm._disks._spec = side.vm._disks._copy._spec = spec
    return side.vm


async def test_copies_longer_than_the_deadlines_succeed(tmp_path: Path) -> None:
    pair = Pair(tmp_path, disk_count=2, disk_bytes=dict.fromkeys("ab", DISK_BYTES), fill=b"Q")
    async with pair.place():
        a = await pair.start("a", VmRole.PRIMARY)
        await a.vm.cont()
        await pair.face("a")  # it has booted: most of its memory was written
        b = await pair.start("b", VmRole.SECONDARY)
        to, slow = await b.vm.listen(), _slowly(a)
        disk, memory = Seen(), Seen()
        await slow.synchronise(to, disk)
        await slow.enter_colo(to, memory)
        assert disk.lasted_ms > 2 * LIMIT_MS
        assert memory.lasted_ms > LIMIT_MS
        for seen, rate in ((disk, DISK_RATE), (memory, MEMORY_RATE)):
            assert max(seen.rates) < 3 * rate
            assert any(one.left_s is not None for _, one in seen.all)
        await checkpoint(a, b)
        assert [one.differences for one in await verify(a)] == [()] * 2


async def test_a_disk_copy_that_stands_is_given_up(tmp_path: Path) -> None:
    pair = Pair(tmp_path, disk_bytes=dict.fromkeys("ab", DISK_BYTES), fill=b"Q")
    async with pair.place():
        a = await pair.start("a", VmRole.PRIMARY)
        await a.vm.cont()
        await pair.face("a")  # it resets its disk no more
        b = await pair.start("b", VmRole.SECONDARY)
        to, slow = await b.vm.listen(), _slowly(a)

        seen = Seen(lambda: _stop_once_under_way(seen, b))
        with pytest.raises(VmError, match=f"disk synchronisation: no progress for {LIMIT_MS} ms"):
            await slow.synchronise(to, seen)
        os.kill(b.vm.pid, signal.SIGKILL)
        await a.vm.leave_pair()
        assert await a.vm.running()


async def test_a_guest_that_resets_its_disk_while_the_copy_stands_is_set_free(
    tmp_path: Path,
) -> None:
    """QEMU's main loop waits for the copy's writes then, and no command is answered."""
    pair = Pair(tmp_path, disk_bytes=dict.fromkeys("ab", DISK_BYTES), fill=b"Q")
    async with pair.place():
        a = await pair.start("a", VmRole.PRIMARY)
        await a.vm.cont()
        await pair.face("a")
        b = await pair.start("b", VmRole.SECONDARY)
        to, slow = await b.vm.listen(), _slowly(a)

        seen = Seen(lambda: _stop_once_under_way(seen, b))
        copy = asyncio.create_task(slow.synchronise(to, seen))
        await until(lambda: _is_stopped(b), "the copy is under way")
        with suppress(QmpError):  # QEMU does not answer it either
            await a.vm._qmp.run("system_reset")
        with pytest.raises(VmError):
            await copy
        await a.vm.leave_pair()
        assert await a.vm.running()
        os.kill(b.vm.pid, signal.SIGKILL)


async def test_a_migration_that_stands_is_given_up(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    async with pair.place():
        a = await pair.start("a", VmRole.PRIMARY)
        await a.vm.cont()
        await pair.face("a")
        b = await pair.start("b", VmRole.SECONDARY)
        to, slow = await b.vm.listen(), _slowly(a)
        await slow.synchronise(to, lambda progress: None)
        seen = Seen(lambda: _stop_once_under_way(seen, b))
        with pytest.raises(VmError, match=f"migration: no progress for {LIMIT_MS} ms"):
            await slow.enter_colo(to, seen)
        os.kill(b.vm.pid, signal.SIGKILL)
        await a.vm.leave_pair()
        assert await a.vm.running()


def _is_stopped(side: Side) -> bool:
    stat = Path(f"/proc/{side.vm.pid}/stat").read_text()
    return stat[stat.rfind(")") + 2] == "T"


def _stop_once_under_way(seen: Seen, b: Side) -> None:
    if seen.all[-1][1].done > seen.all[0][1].done:
        os.kill(b.vm.pid, signal.SIGSTOP)


async def test_a_guest_of_4_gib_is_made_a_pair(tmp_path: Path) -> None:
    async with Pair(tmp_path, memory_mib=4096) as (a, b):
        for what in ("first", "second"):
            began_ns = boot_ns()
            await checkpoint(a, b)
            print(f"4 GiB: the {what} checkpoint took {(boot_ns() - began_ns) / 1e6:.0f} ms")


async def test_a_large_sparse_disk_takes_no_longer_than_what_is_in_it(tmp_path: Path) -> None:
    """200 GB, of which next to nothing was ever written."""
    pair = Pair(tmp_path, disk_bytes=dict.fromkeys("ab", 200 << 30))
    async with pair.place():
        a = await pair.start("a", VmRole.PRIMARY)
        await a.vm.cont()
        b = await pair.start("b", VmRole.SECONDARY)
        async with asyncio.timeout(120):
            await pair.pair_up(a, b)
        await checkpoint(a, b)
        (disk,) = b.spec.disks
        assert disk.path.stat().st_blocks * 512 < 64 << 20
