# SPDX-License-Identifier: GPL-2.0-only
"""What a disk is called that both hosts reach: the same on both, and of no other disk.

Two disks of one size that are taken for one would ruin the VM, so a disk without such a name is
refused. A device's name is the storage's own; that of a file is the server's, or that of the file
system, with the number of the file.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from colo_ebpf.errors import StorageError

_BLOCK_DEVICES = Path("/sys/dev/block")
_RBD = Path("/sys/bus/rbd/devices")
_NAMES = ("dm/uuid", "wwid", "device/wwid")  # LVM, LUKS and multipath; NVMe; SCSI
_OF_SERVERS = ("ceph", "fuse.glusterfs", "nfs", "nfs4")


def name_of(path: Path) -> str:
    """StorageError if that cannot be told."""
    try:
        found = path.stat()
        if stat.S_ISBLK(found.st_mode):
            return _of_device(path, found.st_rdev)
        return _of_file(path, found)
    except OSError as e:
        raise StorageError(f"shared disk {path}: which one it is cannot be told: {e}") from e


def _of_device(path: Path, number: int) -> str:
    here = (_BLOCK_DEVICES / f"{os.major(number)}:{os.minor(number)}").resolve()
    part = here / "partition"
    disk = here.parent if part.exists() else here
    suffix = f" partition {part.read_text().strip()}" if part.exists() else ""
    behind = disk / "loop" / "backing_file"
    if behind.exists():
        return f"loop over {name_of(Path(behind.read_text().strip()))}{suffix}"
    name = _rbd_name(disk.name) or _first_of(disk)
    if not name:
        raise StorageError(
            f"shared disk {path}: {disk.name} has no name of its own (WWID): use a LUN, an RBD "
            "image, an LVM volume on one, or a file on NFS"
        )
    return f"{name}{suffix}"


def _first_of(disk: Path) -> str:
    texts = ((disk / name).read_text().strip() for name in _NAMES if (disk / name).exists())
    return next(filter(None, texts), "")


def _rbd_name(device: str) -> str:
    """Of the cluster, the pool and the image ("" if it is no RBD device)."""
    here = _RBD / device.removeprefix("rbd")
    if not device.startswith("rbd") or not here.exists():
        return ""
    return "rbd " + " ".join(
        (here / name).read_text().strip() for name in ("cluster_fsid", "pool_id", "image_id")
    )


def _of_file(path: Path, found: os.stat_result) -> str:
    kind, source = _mount_of(found.st_dev)
    where = source if kind in _OF_SERVERS else f"{os.statvfs(path).f_fsid:x}"
    return f"{kind} {where} inode {found.st_ino}"


def _mount_of(device: int) -> tuple[str, str]:
    """Kind and source of the file system."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == wanted:
            kind, source = words[words.index("-") + 1 :][:2]
            return kind, source
    return "file", ""
