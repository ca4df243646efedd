# SPDX-License-Identifier: GPL-2.0-only
"""Local images, files or block devices: looked at before QEMU opens them, so that a refusal loses
nothing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from colo_ebpf.directories import make_passable
from colo_ebpf.errors import StorageError

_TIMEOUT_S = 20
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_WRITE_LOCK_BYTE, _NO_WRITER_LOCK_BYTE = 101, 201
_BLKROGET = 0x125E
_QCOW2_MAGIC = b"QFI\xfb"
_PIECES, _PIECE_BYTES = 16, 1 << 20  # of a digest
_BLOCK_DEVICES = Path("/sys/dev/block")


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What `qemu-img info` says, and the driver with which QEMU opens the path (`protocol`)."""

    format: str
    virtual_bytes: int
    protocol: str


def protocol(path: Path) -> str:
    """QEMU's driver for the path: `file` or `host_device`. StorageError if it is neither."""
    mode = _stat(path).st_mode
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISBLK(mode):
        return "host_device"
    raise StorageError(f"image {path}: is no regular file and no block device")


def identity(path: Path) -> tuple[int, ...]:
    """Another tuple means another image, at least until the host is booted anew.

    Of a file: device and inode. A device's node says nothing of what is behind it: there it is the
    kernel's number of this attachment, which no other disk has, and the place on it.

    Raises StorageError if that cannot be told.
    """
    found = _stat(path)
    if not stat.S_ISBLK(found.st_mode):
        return found.st_dev, found.st_ino
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    here = (_BLOCK_DEVICES / f"{major}:{minor}").resolve()
    disk = here.parent if (here / "partition").exists() else here
    start = here / "start" if disk is not here else None
    files = [disk / "diskseq", here / "size", *([start] if start else [])]
    try:
        return found.st_rdev, *(int(file.read_text()) for file in files)
    except OSError as e:
        raise StorageError(f"image {path}: which disk it is cannot be told: {e}") from e


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError as e:
        raise StorageError(f"image {path}: does not exist; create it with qemu-img create") from e
    except OSError as e:
        raise StorageError(f"image {path}: {e.strerror}") from e


def _qemu_img(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["qemu-img", *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as e:
        raise StorageError("qemu-img: not installed; install qemu-utils") from e
    except subprocess.TimeoutExpired as e:
        raise StorageError(f"qemu-img {arguments[0]}: no end after {_TIMEOUT_S} s") from e
    if done.returncode:
        raise StorageError(f"qemu-img {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def inspect(
    path: Path, image_format: str, sector_bytes: int, *, readonly: bool = False
) -> ImageFacts:
    """Facts of an image nobody else writes to. StorageError if missing, in use or unreadable.

    `readonly`: the VM will not write to it, and it need not be writable.
    """
    protocol(path)
    with opened(path, readonly) as file:
        _refuse_if_written(path, file)
    return _info(path, image_format, sector_bytes)


def look(path: Path, image_format: str, sector_bytes: int, *, readonly: bool = False) -> ImageFacts:
    """Facts of an image that may be in use. StorageError also if it seems to be of another format.

    Only a hint: a guest can write what looks like another format into its raw disk.
    """
    protocol(path)
    with opened(path, readonly) as file:
        looks_qcow2 = file.read(len(_QCOW2_MAGIC)) == _QCOW2_MAGIC
    if looks_qcow2 and image_format == "raw":
        raise StorageError(
            f'image {path}: holds a qcow2 image, but its format is "raw": set format = "qcow2", or '
            "convert it with qemu-img convert"
        )
    return _info(path, image_format, sector_bytes)


def _info(path: Path, image_format: str, sector_bytes: int) -> ImageFacts:
    info = json.loads(_qemu_img("info", "-U", "-f", image_format, "--output=json", str(path)))
    found = ImageFacts(str(info["format"]), int(info["virtual-size"]), protocol(path))
    if found.virtual_bytes % sector_bytes:
        raise StorageError(
            f"image {path}: {found.virtual_bytes} bytes are no whole number of sectors of "
            f"{sector_bytes} bytes; enlarge it with qemu-img resize"
        )
    return found


def digest(path: Path, size_bytes: int) -> str:
    """Of the content of a raw image: all of it up to 16 MiB, else of that much, evenly spread.

    Raises StorageError.
    """
    found = hashlib.blake2b(str(size_bytes).encode(), digest_size=16)
    pieces = min(_PIECES, -(-size_bytes // _PIECE_BYTES))
    last = max(0, size_bytes - _PIECE_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            for number in range(pieces):
                file.seek(last * number // max(1, pieces - 1))
                found.update(file.read(_PIECE_BYTES))
    except OSError as e:
        raise StorageError(f"image {path}: cannot be read: {e.strerror}") from e
    return found.hexdigest()


@contextmanager
def opened(path: Path, readonly: bool) -> Iterator[BinaryIO]:
    """As QEMU opens it. A block device must be nobody else's, unless it is only read: one that is
    mounted, or part of another device, is refused. Raises StorageError."""
    is_device = protocol(path) == "host_device"
    alone = os.O_EXCL if is_device and not readonly else 0
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | alone
    try:
        fd = os.open(path, flags)
    except OSError as e:
        raise _refusal(path, e.errno) from e
    with open(fd, "rb" if readonly else "r+b", buffering=0) as file:
        if is_device and not readonly and _is_read_only(file):
            raise _refusal(path, errno.EROFS)
        yield file


def _is_read_only(device: BinaryIO) -> bool:
    """It can be opened for writing nevertheless."""
    answer = fcntl.ioctl(device, _BLKROGET, struct.pack("i", 0))
    return bool(struct.unpack("i", answer)[0])


def _refusal(path: Path, error: int | None) -> StorageError:
    what_to_do = (
        f"the daemon is root, and bound to file modes all the same: chown root {path}, or let "
        "others read and write it, and enter its directories"
    )
    if error == errno.EBUSY:
        what_to_do = "it is mounted or part of another device: give the VM a device of its own"
    elif error in (errno.EROFS, errno.EMEDIUMTYPE):
        what_to_do = "make it writable (DRBD: primary on this host; else blockdev --setrw)"
    return StorageError(f"image {path}: {os.strerror(error or 0)}; {what_to_do}")


def _lock(file: BinaryIO, command: int, kind: int, byte: int) -> bytes:
    return fcntl.fcntl(file, command, struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0))


@contextmanager
def no_other_writer(path: Path) -> Iterator[int]:
    """A descriptor; no other QEMU opens the image for writing while any process has it. For a
    shared disk, whose QEMUs take no lock themselves.

    QEMU locks byte 200 + n of an image for which it shares permission n with nobody. Who opens it
    looks for that lock. Any number of processes may have it, on both hosts.

    Raises StorageError if another QEMU writes to it already.
    """
    with opened(path, readonly=True) as file:
        try:
            _lock(file, _F_OFD_SETLK, fcntl.F_RDLCK, _NO_WRITER_LOCK_BYTE)
        except OSError as e:
            raise StorageError(f"image {path}: cannot be locked: {e.strerror}") from e
        _refuse_if_written(path, file)
        yield file.fileno()


def _refuse_if_written(path: Path, file: BinaryIO) -> None:
    """QEMU locks byte 100 + n of an image it holds permission n for; writing is 1 (block/file)."""
    answer = _lock(file, _F_OFD_GETLK, fcntl.F_WRLCK, _WRITE_LOCK_BYTE)
    if struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK:
        raise StorageError(
            f"image {path}: in use by another process; stop the QEMU that has it open"
        )


def make_overlays(paths: tuple[Path, ...], virtual_bytes: int) -> None:
    """Empty qcow2 overlays of the image's size, for the secondary's replication driver."""
    for path in paths:
        make_passable(path.parent)
        path.unlink(missing_ok=True)
        _qemu_img("create", "-q", "-f", "qcow2", str(path), str(virtual_bytes))
