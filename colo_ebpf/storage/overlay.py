# SPDX-License-Identifier: GPL-2.0-only
"""How much room a secondary's overlays take.

Counted is what the files occupy. QEMU's `wr_highest_offset` would not do: it never falls, while
emptying an overlay cuts its file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from colo_ebpf.directories import make_passable
from colo_ebpf.errors import StorageError

_BLOCK_BYTES = 512  # st_blocks counts in these, whatever the file system
_SHARE = 4
_OWNER = "colo-ebpf.owner"
_LEAST_ROOM_BYTES = 16 << 20


def claim(directory: Path, vm: str) -> None:
    """The directory is this VM's: another's overlays have the same names.

    Raises StorageError if it is another VM's, or nothing can be written there.
    """
    mark = directory / _OWNER
    try:
        if not mark.exists():
            _place(mark, vm)
        theirs = mark.read_text().strip()
    except OSError as e:
        raise StorageError(f"overlay-dir {directory}: {mark.name}: {e.strerror}") from e
    if theirs != vm:
        raise StorageError(
            f"overlay-dir {directory} is that of VM {theirs}: give VM {vm} another, or, if {theirs}"
            f" is no longer protected here, rm {mark}"
        )


def release(directory: Path, vm: str, overlays: Iterable[Path] = ()) -> bool:
    """The directory is nobody's any more; whether it was this VM's, and is gone. `overlays`: the
    files there that nobody needs. With anything else in it, it stays the VM's.

    Raises StorageError if a file cannot be removed.
    """
    mark = directory / _OWNER
    try:
        if not mark.exists() or mark.read_text().strip() != vm:
            return False
        for path in overlays:
            path.unlink(missing_ok=True)
        if holds(directory):
            return False
        mark.unlink()
        directory.rmdir()
    except OSError as e:
        raise StorageError(f"overlay-dir {directory}: {e.strerror}") from e
    return True


def holds(directory: Path) -> bool:
    """Whether anything but the mark is there."""
    return directory.is_dir() and any(path.name != _OWNER for path in directory.iterdir())


def _place(mark: Path, vm: str) -> None:
    """All at once: of two VMs that begin together one finds the other's name."""
    make_passable(mark.parent)
    draft = mark.with_name(f"{mark.name}.{os.getpid()}")
    try:
        draft.write_text(f"{vm}\n")
        with contextlib.suppress(FileExistsError):
            os.link(draft, mark)
    finally:
        draft.unlink(missing_ok=True)


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
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(
            f"overlay-dir {directory}: the daemon cannot write to {there}: it is root, and bound "
            "to file modes all the same"
        )
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
