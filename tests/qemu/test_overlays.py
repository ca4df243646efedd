# SPDX-License-Identifier: GPL-2.0-only
"""A real secondary's overlays: how they grow, what empties them, when they fill."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from colo_ebpf.control.core.vm_health import ROOM_BYTES, Fitness
from colo_ebpf.control.interfaces import of_peer
from colo_ebpf.model import VmEvent, VmEventKind
from tests.capabilities import require
from tests.qemu.pair import Ledger, Pair, Side, checkpoint, until

_EMPTY_BYTES = 600 << 10  # both overlays without data, and a little


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "qemu", "guest")


@contextmanager
def _small(directory: Path, size: str) -> Iterator[None]:
    """A file system of this size, on the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "colot", str(directory)]
    subprocess.run(mount, check=True, stdin=subprocess.DEVNULL, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True, timeout=10)


def _used(side: Side) -> int:
    (use,) = side.vm.overlay_use()
    return use.used_bytes


def _of(side: Side, kind: VmEventKind) -> list[VmEvent]:
    return [event for event in side.events if event.kind is kind]


async def _append_until_refused(count: int) -> None:
    """The guest's disk fails while it writes."""
    with pytest.raises(AssertionError, match="Input/output error"):
        await asyncio.to_thread(Ledger().append, count)


async def test_what_either_vm_writes_grows_them_and_a_checkpoint_empties_them(
    tmp_path: Path,
) -> None:
    pair = Pair(tmp_path, fill=b"Q")
    async with pair as (a, b):
        await pair.face("a")
        await checkpoint(a, b)
        assert _used(b) < _EMPTY_BYTES
        entries = Ledger()
        for writer in ("a", "b"):
            await pair.face(writer)
            await asyncio.to_thread(entries.append, 2000)
            assert _used(b) > _EMPTY_BYTES + (900 << 10), writer
            await checkpoint(a, b)
            assert _used(b) < _EMPTY_BYTES, writer


async def test_a_vm_that_finds_no_room_is_unfit_until_it_is_loaded_anew(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    with _small(tmp_path / "b" / "overlay", "2m"):
        async with pair as (a, b):
            await pair.face("a")
            await checkpoint(a, b)
            assert await b.vm.failed_requests() == 0
            fitness = Fitness()
            fitness.overlays(b.vm.overlay_use(), b.vm.loads())
            assert (fitness.unfit(replica=True), fitness.want) == ("", "")

            await pair.face("b")
            await _append_until_refused(6000)
            await until(lambda: _of(b, VmEventKind.BLOCK_ERROR) != [], "an error")
            assert _of(b, VmEventKind.BLOCK_ERROR)[0].data["reason"] == "No space left on device"
            assert b.vm.past().disk == "No space left on device"
            assert await b.vm.failed_requests() > 0
            (use,) = b.vm.overlay_use()
            assert use.free_bytes < ROOM_BYTES
            fitness.overlays((use,), b.vm.loads())
            fitness.loaded(b.vm.loads())
            assert "no room" in fitness.unfit(replica=True)
            assert _of(a, VmEventKind.DISK_BAD) == [], "the primary cannot know"

            await checkpoint(a, b)
            fitness.overlays(b.vm.overlay_use(), b.vm.loads())
            fitness.loaded(b.vm.loads())
            assert (fitness.unfit(replica=True), fitness.want) == ("", "")


async def test_what_the_primary_writes_and_finds_no_room_for_fails_there(tmp_path: Path) -> None:
    """The old content cannot be kept for the secondary's VM: its export refuses the write."""
    pair = Pair(tmp_path, fill=b"Q")
    with _small(tmp_path / "b" / "overlay", "2m"):
        async with pair as (a, b):
            await pair.face("a")
            await checkpoint(a, b)
            await asyncio.to_thread(Ledger().append, 6000)
            bad = _of(a, VmEventKind.DISK_BAD)
            assert bad
            assert all(of_peer(event) for event in bad)
            assert (a.vm.past().peer_disk, a.vm.past().disk) == (True, "")
            assert _of(b, VmEventKind.BLOCK_ERROR) == [], "the secondary cannot know"


async def test_a_write_that_only_the_peers_image_took_is_told_apart(tmp_path: Path) -> None:
    """The guest is told that all is well: the image here must not be the only one any more."""
    pair = Pair(tmp_path)
    with _small(tmp_path / "a", "2m"):
        async with pair as (a, _b):
            await pair.face("a")
            await asyncio.to_thread(Ledger().append, 6000)
            bad = _of(a, VmEventKind.DISK_BAD)
            assert bad
            assert not any(of_peer(event) for event in bad)
            assert a.vm.past().disk
            assert not a.vm.past().peer_disk
            assert _of(a, VmEventKind.BLOCK_ERROR) == []
