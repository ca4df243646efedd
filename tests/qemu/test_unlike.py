# SPDX-License-Identifier: GPL-2.0-only
"""A host whose VM was taken over becomes the secondary: what is unlike in its images is copied."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from colo_ebpf.control.qemu import carrier, resync
from colo_ebpf.control.qemu.rounds import CHANGES, UNLIKE
from colo_ebpf.model import VmRole
from colo_ebpf.storage import digests
from tests.capabilities import require
from tests.qemu.pair import DISK_BYTES, Ledger, Pair, Side, checkpoint, committed, take_over
from tests.qemu.test_changes import Copied, equal

_ALL = "disk"


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "qemu", "guest")


async def _taken_over(pair: Pair, a: Side, b: Side) -> Ledger:
    """The primary wrote what its secondary never got; so did the other one after the takeover."""
    await pair.face("a")
    entries, lost = Ledger(), Ledger()
    await asyncio.to_thread(entries.append, 20)
    await checkpoint(a, b)
    lost.count = entries.count
    await asyncio.to_thread(lost.append, 30)
    await take_over(a, b)
    await committed(b)
    await pair.face("b")
    await asyncio.to_thread(entries.append, 10)
    return entries


async def _again(pair: Pair, b: Side, copied: Copied, *, known: bool = True) -> Side:
    a = await pair.start("a", VmRole.SECONDARY)
    await pair.pair_up(b, a, copied, known=known)
    return a


def _unlike_bytes(caplog: pytest.LogCaptureFixture) -> int:
    (text,) = (one.getMessage() for one in caplog.records if "were unlike" in one.getMessage())
    return int(text.split()[1])


async def test_after_a_takeover_only_what_is_unlike_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The guest writes meanwhile; none of it may be left out."""
    monkeypatch.setattr(resync, "_FEW_BYTES", 0)
    caplog.set_level("INFO")
    pair, copied = Pair(tmp_path, disk_count=2), Copied()
    async with pair as (a, b):
        entries = await _taken_over(pair, a, b)
        writing = asyncio.create_task(asyncio.to_thread(entries.append, 40))
        again = await _again(pair, b, copied)
        await writing
        await equal(b)
        await checkpoint(b, again)
        assert not any(disk.digests.exists() for disk in again.spec.disks)
        left = await again.vm._qmp.run("query-block-exports")
        assert sorted(one["id"] for one in left) == ["parent0", "parent1"]
    assert {UNLIKE} <= copied.what <= {UNLIKE, CHANGES}
    assert 0 < _unlike_bytes(caplog) < 2 * DISK_BYTES // 4


async def test_digests_that_are_not_made_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other host's daemon died over them: its QEMU exports what there is."""
    monkeypatch.setattr(digests, "make", lambda *_: False)
    monkeypatch.setattr(carrier, "_DIGESTS_LATE_MS", 300)
    pair, copied = Pair(tmp_path), Copied()
    async with pair as (a, b):
        await _taken_over(pair, a, b)
        again = await _again(pair, b, copied)
        await equal(b)
        await checkpoint(b, again)
    assert copied.what == {UNLIKE, _ALL}


async def test_a_host_that_is_new_is_copied_whole(tmp_path: Path) -> None:
    pair, copied = Pair(tmp_path), Copied()
    async with pair as (a, b):
        await _taken_over(pair, a, b)
        await _again(pair, b, copied, known=False)
        await equal(b)
    assert copied.what == {_ALL}


async def test_digests_that_a_daemon_left_delay_no_takeover(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    async with pair as (a, b):
        await b.vm._disks.digests.offer()
        await take_over(a, b)
        assert await b.vm._qmp.run("query-block-exports") == []
        assert not b.spec.disks[0].digests.exists()
