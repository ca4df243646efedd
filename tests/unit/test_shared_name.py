# SPDX-License-Identifier: GPL-2.0-only
"""What a shared disk is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colo_ebpf.errors import StorageError
from colo_ebpf.storage import shared_disk
from colo_ebpf.storage.shared_disk import name_of


def test_a_file_has_one_name_by_whatever_path(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x")
    (tmp_path / "other").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert name_of(tmp_path / "one") == name_of(tmp_path / "link")
    assert name_of(tmp_path / "one") != name_of(tmp_path / "other")


def test_a_file_on_a_server_has_the_servers_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of the file system is each host's own there."""
    (tmp_path / "one").write_bytes(b"x")
    monkeypatch.setattr(shared_disk, "_mount_of", lambda device: ("nfs4", "store:/vms"))
    inode = (tmp_path / "one").stat().st_ino
    assert name_of(tmp_path / "one") == f"nfs4 store:/vms inode {inode}"


def _device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str = "sda") -> Path:
    """A disk of sysfs, as the kernel shows it."""
    disk = tmp_path / name
    disk.mkdir()
    (tmp_path / "8:0").symlink_to(disk)
    monkeypatch.setattr(shared_disk, "_BLOCK_DEVICES", tmp_path)
    return disk


def _name(tmp_path: Path) -> str:
    return shared_disk._of_device(tmp_path / "node", os.makedev(8, 0))


@pytest.mark.parametrize("file", ["dm/uuid", "wwid", "device/wwid"])
def test_a_device_has_the_storages_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    path = _device(tmp_path, monkeypatch) / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("naa.600140512345\n")
    assert _name(tmp_path) == "naa.600140512345"


def test_an_rbd_image_is_told_by_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _device(tmp_path, monkeypatch, "rbd3")
    here = tmp_path / "3"
    here.mkdir()
    for name, text in (("cluster_fsid", "c0ffee"), ("pool_id", "2"), ("image_id", "10ab")):
        (here / name).write_text(f"{text}\n")
    monkeypatch.setattr(shared_disk, "_RBD", tmp_path)
    assert _name(tmp_path) == "rbd c0ffee 2 10ab"


def test_partitions_of_one_disk_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = _device(tmp_path, monkeypatch)
    (disk / "wwid").write_text("naa.6001\n")
    part = disk / "sda2"
    part.mkdir()
    (part / "partition").write_text("2\n")
    (tmp_path / "8:0").unlink()
    (tmp_path / "8:0").symlink_to(part)
    assert _name(tmp_path) == "naa.6001 partition 2"


def test_a_device_without_a_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _device(tmp_path, monkeypatch, "vda")
    with pytest.raises(StorageError, match="vda has no name of its own"):
        _name(tmp_path)


def test_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be told: .*No such file"):
        name_of(tmp_path / "none")
