# SPDX-License-Identifier: GPL-2.0-only
"""Block devices for tests: loop devices, which the kernel treats as it treats LVM and DRBD."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def attach(file: Path, sector_bytes: int = 512) -> Path:
    """The device that the file now is."""
    command = ["losetup", "--show", "--find", "--sector-size", str(sector_bytes), str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    return Path(done.stdout.strip())


def detach(device: Path) -> None:
    """The end of `attach`."""
    subprocess.run(["losetup", "--detach", str(device)], check=True, timeout=10)


@contextmanager
def attached(file: Path, sector_bytes: int = 512) -> Iterator[Path]:
    """The device that the file is meanwhile."""
    device = attach(file, sector_bytes)
    try:
        yield device
    finally:
        detach(device)
