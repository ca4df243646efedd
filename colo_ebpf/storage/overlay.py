# SPDX-License-Identifier: GPL-2.0-only
"""How much room a secondary's overlays take.

Counted is what the files occupy. QEMU's `wr_highest_offset` would not do: it never falls, while
emptying an overlay cuts its file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_BLOCK_BYTES = 512  # st_blocks counts in these, whatever the file system
_SHARE = 4


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


def share_bytes(directory: Path, files: Iterable[Path], disks: int) -> int:
    """What one disk's overlays may take unless the configuration says: its part of a quarter of
    what was free before they grew. The rest is for what comes while a checkpoint is awaited."""
    return (free_bytes(directory) + used_bytes(files)) // (_SHARE * disks)
