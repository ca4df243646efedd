# SPDX-License-Identifier: GPL-2.0-only
"""Block devices as images, loop devices here: what is looked at before QEMU opens one."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.control.state.images import DataGeneration
from colo_ebpf.errors import StorageError
from colo_ebpf.storage import image
from tests.capabilities import require
from tests.loop import attach, attached, detach

SIZE = 16 << 20


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "loop", "qemu-nbd")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as stream:
        stream.truncate(SIZE)
    return path


@pytest.fixture(params=[512, 4096])
def device(file: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, int]]:
    with attached(file, request.param) as found:
        yield found, request.param


def test_a_device_is_an_image_of_its_own_driver_and_size(device: tuple[Path, int]) -> None:
    path, sector_bytes = device
    wanted = image.ImageFacts("raw", SIZE, "host_device")
    assert image.look(path, "raw", sector_bytes) == wanted
    assert image.inspect(path, "raw", sector_bytes) == wanted


def test_a_qcow2_image_may_lie_on_a_device(device: tuple[Path, int]) -> None:
    path, _ = device
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1G"], check=True)
    assert image.look(path, "qcow2", 512).virtual_bytes == 1 << 30
    with pytest.raises(StorageError, match='its format is "raw": set format = "qcow2"'):
        image.look(path, "raw", 512)


def test_a_link_to_a_device_is_that_device(device: tuple[Path, int], tmp_path: Path) -> None:
    """As LVM names its volumes."""
    link = tmp_path / "lv"
    link.symlink_to(device[0])
    assert image.protocol(link) == "host_device"
    assert image.identity(link) == image.identity(device[0])


def test_a_device_that_is_in_use_by_the_host_is_refused(
    device: tuple[Path, int], tmp_path: Path
) -> None:
    path, sector_bytes = device
    held = os.open(path, os.O_RDWR | os.O_EXCL)  # as a mount, LVM or RAID holds it
    try:
        for look in (image.look, image.inspect):
            with pytest.raises(StorageError, match="it is mounted or part of another device"):
                look(path, "raw", sector_bytes)
    finally:
        os.close(held)
    image.inspect(path, "raw", sector_bytes)


def test_a_device_that_cannot_be_written_is_refused(device: tuple[Path, int]) -> None:
    path, sector_bytes = device
    subprocess.run(["blockdev", "--setro", path], check=True)
    try:
        with pytest.raises(StorageError, match=r"make it writable \(DRBD: primary"):
            image.inspect(path, "raw", sector_bytes)
    finally:
        subprocess.run(["blockdev", "--setrw", path], check=True)  # it outlives the file behind


def test_another_disk_behind_the_same_node_is_no_replica(file: Path, tmp_path: Path) -> None:
    """The node's device and inode stay the same."""
    device = attach(file)
    try:
        kept = DataGeneration(tmp_path / "replicas.json", (device,))
        kept.begin("b/1")
        assert kept.replicas() == ("b/1",)
        detach(device)
        other = tmp_path / "other.raw"
        other.write_bytes(bytes(SIZE))
        subprocess.run(["losetup", device, other], check=True)
        assert kept.replicas() == ()
    finally:
        detach(device)


def test_a_partition_is_told_from_the_others(file: Path) -> None:
    entries = [struct.pack("<4xB3xII", 0x83, start, 4096) for start in (2048, 8192)]
    with file.open("r+b") as stream:
        stream.seek(446)
        stream.write(b"".join(entries) + bytes(32) + b"\x55\xaa")
    with attached(file) as disk:
        subprocess.run(["partx", "--add", disk], check=True)
        parts = [Path(f"{disk}p{n}") for n in (1, 2)]
        found = [image.identity(part) for part in (disk, *parts)]
        assert len(set(found)) == 3
        assert image.look(parts[0], "raw", 512).virtual_bytes == 4096 * 512
        subprocess.run(["partx", "--delete", disk], check=True)
