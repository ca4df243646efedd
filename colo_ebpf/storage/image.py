# SPDX-License-Identifier: GPL-2.0-only
"""Local images: looked at before QEMU opens them, so that a refusal loses nothing."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.errors import StorageError

_TIMEOUT_S = 20
_F_OFD_GETLK = 36
_WRITE_LOCK_BYTE = 101
_QCOW2_MAGIC = b"QFI\xfb"
_SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What `qemu-img info` says."""

    format: str
    virtual_bytes: int


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


def inspect(path: Path, image_format: str) -> ImageFacts:
    """Facts of an image nobody else writes to. StorageError if missing, in use or unreadable."""
    _require(path)
    _refuse_if_written(path)
    return _info(path, image_format)


def look(path: Path, image_format: str) -> ImageFacts:
    """Facts of an image that may be in use. StorageError also if it seems to be of another format.

    Only a hint: a guest can write what looks like another format into its raw disk.
    """
    _require(path)
    with path.open("rb") as file:
        looks_qcow2 = file.read(len(_QCOW2_MAGIC)) == _QCOW2_MAGIC
    if looks_qcow2 and image_format == "raw":
        raise StorageError(
            f'image {path}: holds a qcow2 image, but its format is "raw": set format = "qcow2", or '
            "convert it with qemu-img convert"
        )
    found = _info(path, image_format)
    if found.virtual_bytes % _SECTOR_BYTES:
        raise StorageError(
            f"image {path}: {found.virtual_bytes} bytes are no whole number of sectors; enlarge it "
            "with qemu-img resize"
        )
    return found


def _require(path: Path) -> None:
    if not path.exists():
        raise StorageError(f"image {path}: does not exist; create it with qemu-img create")


def _info(path: Path, image_format: str) -> ImageFacts:
    info = json.loads(_qemu_img("info", "-U", "-f", image_format, "--output=json", str(path)))
    return ImageFacts(str(info["format"]), int(info["virtual-size"]))


def _refuse_if_written(path: Path) -> None:
    """QEMU locks byte 100 + n of an image it holds permission n for; writing is 1 (block/file)."""
    query = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _WRITE_LOCK_BYTE, 1, 0)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        raise StorageError(f"image {path}: {e.strerror}; the daemon must be able to write") from e
    try:
        answer = fcntl.fcntl(fd, _F_OFD_GETLK, query)
    finally:
        os.close(fd)
    if struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK:
        raise StorageError(
            f"image {path}: in use by another process; stop the QEMU that has it open"
        )


def make_overlays(paths: tuple[Path, ...], virtual_bytes: int) -> None:
    """Empty qcow2 overlays of the image's size, for the secondary's replication driver."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        _qemu_img("create", "-q", "-f", "qcow2", str(path), str(virtual_bytes))
