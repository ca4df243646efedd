# SPDX-License-Identifier: GPL-2.0-only
"""A replica that was lost is made again from its remains: only what changed is copied."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from colo_ebpf.control.qemu import resync
from colo_ebpf.control.qemu.bitmaps import bitmap_of, round_of
from colo_ebpf.control.qemu.cmdline import lending_path
from colo_ebpf.control.qemu.vm import data_generation_of
from colo_ebpf.errors import QmpError, StorageError, VmError
from colo_ebpf.model import Progress, VmEventKind, VmRole
from tests.capabilities import require
from tests.qemu.pair import DISK_BYTES, Ledger, Pair, Side, checkpoint, take_over, until
from tests.qemu.test_disks import verify

_WHAT_CHANGED = "changes of the disk"


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "qemu", "guest")


class Copied:
    """What `synchronise` tells of its progress."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.what: set[str] = set()
        self.most_bytes = 0
        self._then = then

    def __call__(self, progress: Progress) -> None:
        self.what.add(progress.what)
        self.most_bytes = max(self.most_bytes, progress.total)
        self._then()


async def _alone(a: Side, b: Side, entries: Ledger) -> None:
    """The replica dies under a guest that writes; the primary goes on alone, and so does that."""
    writing = asyncio.create_task(asyncio.to_thread(entries.append, 100))
    os.kill(b.vm.pid, signal.SIGKILL)
    await until(lambda: not b.vm.alive, "the replica's end")
    await a.vm.continue_alone()
    await writing
    await asyncio.to_thread(entries.append, 20)


async def _again(pair: Pair, a: Side, copied: Copied) -> Side:
    b = await pair.start("b", VmRole.SECONDARY)
    await pair.pair_up(a, b, copied)
    return b


async def equal(a: Side) -> None:
    found = await verify(a)
    assert [(one.differences, one.complete) for one in found] == [((), True)] * len(found)


async def test_only_what_changed_is_copied_and_all_isequal(tmp_path: Path) -> None:
    pair, entries, copied = Pair(tmp_path, disk_count=2), Ledger(), Copied()
    async with pair as (a, _):
        await pair.face("a")
        await asyncio.to_thread(entries.append, 20)
        for _ in range(2):  # the second time the remains are those of a replica made so
            await _alone(a, pair.sides[-1], entries)
            again = await _again(pair, a, copied)
            await asyncio.to_thread(entries.append, 20)
            await equal(a)
            # QEMU may say up to a second late what the replica that died did not take.
            await checkpoint(a, again, beside=VmEventKind.DISK_BAD)
    assert copied.what == {_WHAT_CHANGED}
    assert copied.most_bytes < 2 * DISK_BYTES // 4


async def test_a_copy_that_breaks_off_loses_no_mark(tmp_path: Path) -> None:
    def fail() -> None:
        raise VmError("the test ends it")

    pair, entries, copied = Pair(tmp_path), Ledger(), Copied()
    async with pair as (a, b):
        await pair.face("a")
        await asyncio.to_thread(entries.append, 20)
        await _alone(a, b, entries)
        with pytest.raises(VmError, match="the test ends it"):
            await _again(pair, a, Copied(fail))
        os.kill(pair.sides[-1].vm.pid, signal.SIGKILL)
        await a.vm.leave_pair()
        await asyncio.to_thread(entries.append, 20)
        await _again(pair, a, copied)
        await equal(a)
    assert copied.what == {_WHAT_CHANGED}


async def test_a_pairing_that_is_given_up_under_colo_can_be_tried_again(tmp_path: Path) -> None:
    """As found: QEMU's migration was cancelled for ever, and nobody protected the VM again."""
    pair = Pair(tmp_path)
    async with pair as (a, b):
        await checkpoint(a, b)
        for _ in range(2):
            await a.vm.leave_pair()
            await checkpoint(a, await _again(pair, a, Copied()))


async def test_many_changes_are_copied_beside_the_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest writes all the while, and more than once what was copied is written again."""
    monkeypatch.setattr(resync, "_FEW_BYTES", 0)
    pair, entries, copied = Pair(tmp_path, disk_count=2), Ledger(), Copied()
    async with pair as (a, b):
        await pair.face("a")
        await asyncio.to_thread(entries.append, 20)
        await _alone(a, b, entries)
        writing = asyncio.create_task(asyncio.to_thread(entries.append, 40))
        again = await _again(pair, a, copied)
        await writing
        await equal(a)
        await checkpoint(a, again, beside=VmEventKind.DISK_BAD)
    assert _WHAT_CHANGED in copied.what


async def test_a_guest_that_writes_faster_than_it_is_copied_is_copied_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resync, "_FEW_BYTES", -1)
    pair, entries, copied = Pair(tmp_path), Ledger(), Copied()
    async with pair as (a, b):
        await pair.face("a")
        await asyncio.to_thread(entries.append, 20)
        await _alone(a, b, entries)
        await _again(pair, a, copied)
        await equal(a)
    assert copied.what == {_WHAT_CHANGED, "disk"}


async def test_a_peer_that_dies_while_changes_are_copied_loses_no_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest sees no error, and the next attempt copies all of the changes again."""
    monkeypatch.setattr(resync, "_FEW_BYTES", 0)
    pair, entries, copied = Pair(tmp_path), Ledger(), Copied()

    def die() -> None:
        os.kill(pair.sides[-1].vm.pid, signal.SIGKILL)

    async with pair as (a, b):
        await pair.face("a")
        await asyncio.to_thread(entries.append, 20)
        await _alone(a, b, entries)
        with pytest.raises(StorageError):
            await _again(pair, a, Copied(die))
        await until(lambda: not pair.sides[-1].vm.alive, "the replica's end")
        await a.vm.leave_pair()
        await asyncio.to_thread(entries.append, 20)
        await _again(pair, a, copied)
        await equal(a)
        assert await a.vm.failed_requests() == 0
    assert copied.what == {_WHAT_CHANGED}


async def test_a_daemon_that_dies_while_changes_are_copied_is_in_nobodys_way(
    tmp_path: Path,
) -> None:
    """Its bitmaps are there, one of them is in use by an export."""
    pair, entries, copied = Pair(tmp_path), Ledger(), Copied()
    async with pair as (a, b):
        await pair.face("a")
        await asyncio.to_thread(entries.append, 20)
        await _alone(a, b, entries)
        disks, path = a.vm._disks, lending_path(a.spec)
        bitmaps = disks._copy._bitmaps
        await bitmaps.begin_rounds(bitmap_of(b.vm.instance))
        await disks._lending.changes(path, a.spec.copied_disks, round_of(0))
        with pytest.raises(QmpError, match="in use"):
            await bitmaps.drop_rounds()
        await _again(pair, a, copied)
        await equal(a)
        assert not await bitmaps.in_rounds()
    assert copied.what == {_WHAT_CHANGED}


async def test_another_image_is_copied_whole(tmp_path: Path) -> None:
    pair, entries, copied = Pair(tmp_path), Ledger(), Copied()
    async with pair as (a, b):
        await pair.face("a")
        await asyncio.to_thread(entries.append, 20)
        await _alone(a, b, entries)
        (disk,) = b.spec.disks
        shutil.copyfile(disk.path, disk.path.with_suffix(".new"))
        disk.path.with_suffix(".new").replace(disk.path)
        await _again(pair, a, copied)
        await equal(a)
    assert copied.what == {"disk"}


async def test_who_has_taken_over_is_no_replica_any_more(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    async with pair as (a, b):
        assert data_generation_of(b.spec).replicas() == (b.vm.instance,)
        await take_over(a, b)
        assert data_generation_of(b.spec).replicas() == ()
