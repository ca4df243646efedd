# SPDX-License-Identifier: GPL-2.0-only
"""A real pair whose disks are block devices, loop devices here, behind links as LVM makes them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.lab import ledger
from colo_ebpf.model import VmRole
from tests.capabilities import require
from tests.loop import attach, detach
from tests.qemu.pair import DISK_BYTES, TEXT, Ledger, Pair, checkpoint, committed, take_over, until
from tests.qemu.test_changes import Copied
from tests.qemu.test_disks import verify

_DISKS = 2


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "qemu", "guest", "loop")


@pytest.fixture(params=[512, 4096])
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Both hosts' disks are devices with these sectors, and so are the guest's."""
    devices = []
    try:
        for host in "ab":
            (tmp_path / host).mkdir()
            for number in range(_DISKS):
                behind = tmp_path / f"{host}{number}"
                with behind.open("wb") as file:
                    file.truncate(DISK_BYTES)
                devices.append(attach(behind, request.param))
                (tmp_path / host / f"disk{number}.raw").symlink_to(devices[-1])
        yield Pair(tmp_path, disk_count=_DISKS, sector_bytes=request.param)
    finally:
        for device in devices:
            detach(device)


async def test_a_pair_on_block_devices_survives(pair: Pair) -> None:
    copied = Copied()
    async with pair as (a, b):
        await pair.face("a")
        entries = Ledger()
        await asyncio.to_thread(entries.append, 40)
        await checkpoint(a, b)
        os.kill(b.vm.pid, signal.SIGKILL)
        await until(lambda: not b.vm.alive, "the replica's end")
        await a.vm.continue_alone()
        await asyncio.to_thread(entries.append, 10)

        again = await pair.start("b", VmRole.SECONDARY)  # the remains on its devices are enough
        await pair.pair_up(a, again, copied)
        await asyncio.to_thread(entries.append, 50)
        found = await verify(a)
        assert [(one.differences, one.complete) for one in found] == [((), True)] * _DISKS
        await checkpoint(a, again)

        await take_over(a, again)
        await committed(again)
        for first, disk in enumerate(again.spec.disks, 1):
            assert disk.path.is_block_device()
            image = disk.path.read_bytes()
            for number in range(first, entries.count + 1, _DISKS):
                entry = ledger.block(image, number)
                assert entry is not None and entry[1] == TEXT.decode(), (disk, number)
    assert copied.what == {"changes of the disk"}
