# SPDX-License-Identifier: GPL-2.0-only
"""The disks of a real pair: two of them, through a failover; compared while the guest writes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from colo_ebpf.errors import StorageError
from colo_ebpf.lab import ledger
from colo_ebpf.model import LentImage, Progress, VmRole
from colo_ebpf.storage.nbd import Connection, ExportAddress
from colo_ebpf.storage.verify import CHUNK_BYTES, IN_FLIGHT, Comparison, Range, compare
from tests.capabilities import require
from tests.qemu.pair import TEXT, Ledger, Pair, Side, checkpoint, committed, take_over

_TIMEOUT_MS = 20_000


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "qemu", "guest")


@contextmanager
def both(one: LentImage) -> Iterator[tuple[Connection, Connection]]:
    """Connections to an image and to its replica."""
    with ExitStack() as stack:
        here = ExportAddress(one.export, path=one.path)
        there = ExportAddress(one.replica, one.host, one.port)
        yield (
            stack.enter_context(Connection(here, _TIMEOUT_MS)),
            stack.enter_context(Connection(there, _TIMEOUT_MS)),
        )


def _compare(one: LentImage) -> Comparison:
    with both(one) as (here, there):
        return compare(here, there, 10)


async def verify(a: Side) -> list[Comparison]:
    """Each replicated disk of a pair, compared."""
    lent = await a.vm.lend_images()
    try:
        return [await asyncio.to_thread(_compare, one) for one in lent]
    finally:
        await a.vm.take_back_images()


def holds(image: bytes, numbers: range) -> bool:
    """Each of these entries of the ledger."""
    entries = [ledger.block(image, n) for n in numbers]
    return all(entry is not None and entry[1] == TEXT.decode() for entry in entries)


async def test_two_disks_are_replicated_compared_and_survive(tmp_path: Path) -> None:
    pair = Pair(tmp_path, disk_count=2)
    async with pair as (a, b):
        await pair.face("a")
        await asyncio.to_thread(Ledger().append, 200)
        found = await verify(a)
        assert [(one.differences, one.complete) for one in found] == [((), True)] * 2
        assert all(0 < one.read_bytes < one.size_bytes for one in found)
        await checkpoint(a, b)
        await take_over(a, b)
        await committed(b)
        for first, disk in enumerate(b.spec.disks, 1):
            assert holds(disk.path.read_bytes(), range(first, 201, 2)), disk


async def test_hosts_with_different_disks_are_not_paired(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"1 disks here \(parent0\), 2 on .*\[\[vm.disk\]\]"):
        async with Pair(tmp_path, disk_count={"a": 1, "b": 2}):
            pass


async def test_the_primary_goes_on_alone_with_both_disks(tmp_path: Path) -> None:
    pair = Pair(tmp_path, disk_count=2)
    async with pair as (a, b):
        await pair.face("a")
        entries = Ledger()
        await asyncio.to_thread(entries.append, 10)
        os.kill(b.vm.pid, signal.SIGKILL)
        await a.vm.continue_alone()
        await asyncio.to_thread(entries.append, 10)
        for first, disk in enumerate(a.spec.disks, 1):
            assert holds(disk.path.read_bytes(), range(first, 21, 2)), disk
        with pytest.raises(Exception, match="disk 0 is not replicated"):
            await a.vm.lend_images()


async def test_a_copy_that_breaks_leaves_nothing_in_the_way_of_the_next(tmp_path: Path) -> None:
    pair = Pair(tmp_path, disk_count=2, disk_bytes=dict.fromkeys("ab", 256 << 20), fill=b"Q")
    async with pair.place():
        a = await pair.start("a", VmRole.PRIMARY)
        await a.vm.cont()
        b = await pair.start("b", VmRole.SECONDARY)
        to = await b.vm.listen()

        under_way = asyncio.Event()

        def look(progress: Progress) -> None:
            if progress.done:
                under_way.set()

        copying = asyncio.create_task(a.vm.synchronise(to, look))
        await under_way.wait()
        os.kill(b.vm.pid, signal.SIGKILL)
        copying.cancel()  # as the daemon does when the peer falls silent
        with pytest.raises(asyncio.CancelledError):
            await copying
        await a.vm.leave_pair()
        assert await a.vm.running()
        await b.vm.kill()
        again = await pair.start("b", VmRole.SECONDARY)
        await pair.pair_up(a, again)
        assert all(one.differences == () for one in await verify(a))


async def test_a_pair_is_equal_while_its_guest_writes(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    async with pair as (a, b):
        await pair.face("a")
        entries, writing = Ledger(), True

        def write() -> None:
            while writing:
                entries.append(16)

        task = asyncio.create_task(asyncio.to_thread(write))
        try:
            for _ in range(5):
                (found,) = await verify(a)
                assert found.differences == ()
                await checkpoint(a, b)
        finally:
            writing = False
            await task
        assert entries.count > 16


async def test_a_difference_is_found(tmp_path: Path) -> None:
    async with Pair(tmp_path) as (a, b):
        with b.spec.disks[0].path.open("r+b") as image:
            image.seek(5 << 20)
            image.write(b"not the same")
        (found,) = await verify(a)
        assert found.differences == (Range(5 << 20, 512),)


async def test_a_reader_that_hangs_holds_no_checkpoint_up(tmp_path: Path) -> None:
    """Its answers wait in the sockets' buffers: QEMU drains its disks before each checkpoint."""
    async with Pair(tmp_path, fill=b"Q") as (a, b):
        (one,) = await a.vm.lend_images()
        with both(one) as (here, there):
            for round_ in range(10):
                first = round_ * IN_FLIGHT
                readings = [
                    (c, c.start_read((first + n) * CHUNK_BYTES, CHUNK_BYTES))
                    for c in (here, there)
                    for n in range(IN_FLIGHT)
                ]
                if round_ == 9:
                    break  # asked for, and never read
                for connection, reading in readings:
                    connection.finish_read(reading)
            for _ in range(3):
                await checkpoint(a, b)
        await a.vm.take_back_images()


async def test_images_can_be_lent_again_after_one_who_forgot(tmp_path: Path) -> None:
    async with Pair(tmp_path) as (a, _b):
        first = await a.vm.lend_images()
        assert await a.vm.lend_images() == first
        (found,) = await verify(a)
        assert found.differences == ()
