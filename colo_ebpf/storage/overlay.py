# SPDX-License-Identifier: GPL-2.0-only
"""How much room a secondary's overlays take.

Counted is what the files occupy. QEMU's `wr_highest_offset` would not do: it never falls, while
emptying an overlay cuts its file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from colo_ebpf.errors import StorageError

_BLOCK_BYTES = 512  # st_blocks counts in these, whatever the file system
_SHARE = 4
_LEAST_ROOM_BYTES = 16 << 20


def used_bytes(files: Iterable[Path]) -> int:
    """Of the files that are there."""
    total = 0
    for file in files:
        try:
            total += os.stat(file).st_blocks * _BLOCK_BYTES
        except OSError:
            continue  # merged and removed, or not made yet
    return total


def free_bytes(directory: Path) -> int:
    """Left in its file system; 0 if that cannot be asked."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def check_room(directory: Path, limit_bytes: int) -> str:
    """StorageError if a secondary's overlays would not find room. `limit_bytes` 0: the default."""
    there = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    free = free_bytes(there)
    wanted = max(limit_bytes, _LEAST_ROOM_BYTES)
    if free < wanted:
        raise StorageError(
            f"overlay-dir {directory}: {free >> 20} MiB are free, {wanted >> 20} MiB are needed; "
            "give it a larger file system, or set a smaller overlay-limit-mib"
        )
    return f"{directory}: {free >> 20} MiB free"


def share_bytes(directory: Path, files: Iterable[Path], disks: int) -> int:
    """What one disk's overlays may take unless the configuration says: its part of a quarter of
    what was free before they grew. The rest is for what comes while a checkpoint is awaited."""
    return (free_bytes(directory) + used_bytes(files)) // (_SHARE * disks)
