# SPDX-License-Identifier: GPL-2.0-only
"""Local images: looked at before QEMU opens them, so that a refusal loses nothing."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.errors import StorageError

_TIMEOUT_S = 20


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
    if not path.exists():
        raise StorageError(f"image {path}: does not exist; create it with qemu-img create")
    try:
        info = json.loads(_qemu_img("info", "-f", image_format, "--output=json", str(path)))
    except StorageError as e:
        if "lock" in str(e):
            raise StorageError(
                f"image {path}: in use by another process; stop the QEMU that has it open"
            ) from e
        raise
    return ImageFacts(str(info["format"]), int(info["virtual-size"]))


def make_overlays(paths: tuple[Path, ...], virtual_bytes: int) -> None:
    """Empty qcow2 overlays of the image's size, for the secondary's replication driver."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        _qemu_img("create", "-q", "-f", "qcow2", str(path), str(virtual_bytes))
