# SPDX-License-Identifier: GPL-2.0-only
"""What a guest may have beside one disk and one queue goes through checkpoints and a takeover."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from colo_ebpf.control.qemu.cmdline import VIRTIO_BLK, VIRTIO_SCSI, Hardware, VmSpec, vnc_path
from colo_ebpf.errors import AttachError, VmError
from colo_ebpf.model import VmRole
from tests.capabilities import require
from tests.qemu.pair import Ledger, Pair, checkpoint, committed, take_over
from tests.qemu.test_disks import holds, verify


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "qemu", "guest")


def _all_of_it(spec: VmSpec) -> VmSpec:
    disks = tuple(replace(disk, slot=6, serial="system") for disk in spec.disks)
    nics = tuple(replace(nic, slot=3) for nic in spec.nics)
    hardware = Hardware(local_time=True, rng=True, vga=True)
    return replace(spec, disks=disks, nics=nics, hardware=hardware)


async def test_it_outlives_the_primary(tmp_path: Path) -> None:
    async with Pair(tmp_path, change=_all_of_it) as (a, b):
        assert all(vnc_path(side.spec).is_socket() for side in (a, b))
        await checkpoint(a, b)
        await take_over(a, b)
        assert await b.vm.running()


async def test_parts_are_in_the_slots_that_they_were_given(tmp_path: Path) -> None:
    pair = Pair(tmp_path, change=_all_of_it)
    async with pair.place():
        a = await pair.start("a", VmRole.PRIMARY)
        buses = await a.vm._qmp.run("query-pci")
        slots = {device["qdev_id"]: device["slot"] for device in buses[0]["devices"]}
        assert (slots["nic0"], slots["disk0"]) == (3, 6)


MEDIUM = b"CD001" * 8192


def _scsi_and_more(spec: VmSpec) -> VmSpec:
    """Its only written disk on virtio-scsi, a CD-ROM beside it, and a read-only virtio-blk."""
    medium = spec.run_dir / "seed.iso"
    medium.write_bytes(MEDIUM)
    medium.chmod(0o444)
    (system,) = spec.disks
    cdrom = replace(system, number=1, path=medium, bus=VIRTIO_SCSI, readonly=True)
    seed = replace(cdrom, number=2, bus=VIRTIO_BLK)
    append = spec.append.replace("colo.disk=vda", "colo.scsi colo.ledger=sda colo.disk=sr0")
    disks = (replace(system, bus=VIRTIO_SCSI), cdrom, seed)
    return replace(spec, disks=disks, append=append)


async def test_a_scsi_disk_a_cd_rom_and_queues_outlive_the_primary(tmp_path: Path) -> None:
    pair = Pair(tmp_path, queues=4, change=_scsi_and_more)
    async with pair as (a, b):
        await pair.face("a")
        booted = (a.spec.run_dir / "serial.log").read_text(errors="replace")
        for disk in ("sda, read-only 0, begins with ''", "sr0, read-only 1, begins with 'CD001'"):
            assert f"colo-guest: {disk}" in booted
        assert "colo-guest: vda, read-only 1, begins with 'CD001'" in booted
        entries = Ledger()
        await asyncio.to_thread(entries.append, 40)
        (found,) = await verify(a)
        assert (found.differences, found.complete) == ((), True)
        await checkpoint(a, b)
        await asyncio.to_thread(entries.append, 10)
        await checkpoint(a, b)
        assert [use.disk for use in b.vm.overlay_use()] == [0]
        await take_over(a, b)
        await committed(b)
        await pair.face("b")
        await asyncio.to_thread(entries.append, 10)
        assert holds(b.spec.disks[0].path.read_bytes(), range(1, 61))
        assert b.spec.disks[1].path.read_bytes() == MEDIUM
        assert await b.vm.failed_requests() == 0


async def test_the_primary_goes_on_with_them(tmp_path: Path) -> None:
    pair = Pair(tmp_path, queues=4, change=_scsi_and_more)
    async with pair as (a, b):
        await pair.face("a")
        os.kill(b.vm.pid, signal.SIGKILL)
        await a.vm.continue_alone()
        entries = Ledger()
        await asyncio.to_thread(entries.append, 10)
        assert holds(a.spec.disks[0].path.read_bytes(), range(1, 11))
        await pair.pair_up(a, await pair.start("b", VmRole.SECONDARY))
        assert all(one.differences == () for one in await verify(a))


async def test_nvme_cannot_be_copied(tmp_path: Path) -> None:
    """Why there is no such bus: if this fails, a QEMU can, and it may be offered."""

    def nvme(spec: VmSpec) -> VmSpec:
        path = spec.run_dir / "nvme.raw"
        path.write_bytes(bytes(1 << 20))
        drive = f"if=none,id=n0,format=raw,file={path}"
        return replace(spec, extra_args=("-drive", drive, "-device", "nvme,serial=n,drive=n0"))

    with pytest.raises(VmError, match="nvme"):
        async with Pair(tmp_path, change=nvme):
            pass


async def test_a_tap_that_the_vm_cannot_open_is_told_in_words(tmp_path: Path) -> None:
    """As found: `This event loop is already running`."""

    def two_queues(spec: VmSpec) -> VmSpec:
        return replace(spec, nics=tuple(replace(nic, queues=2) for nic in spec.nics))

    with pytest.raises(AttachError, match=r"tap tapa: .*made without multi_queue"):
        async with Pair(tmp_path, change=two_queues):
            pass
