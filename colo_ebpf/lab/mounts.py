# SPDX-License-Identifier: GPL-2.0-only
"""The lab's file systems: one in memory for all its files, one BPF file system per host."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from pathlib import Path

from colo_ebpf.errors import LabError

_MNT_DETACH, _MS_BIND = 2, 4096
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(kind: str, target: Path, options: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    done = _libc.mount(kind.encode(), bytes(target), kind.encode(), 0, options.encode() or None)
    if done:
        raise LabError(f"mount {kind} on {target}: {os.strerror(ctypes.get_errno())}")


def mount_memory(target: Path, size_bytes: int = 0) -> None:
    """A tmpfs: it takes only what is written to it, up to a size if there is one."""
    _mount("tmpfs", target, "mode=0711" + (f",size={size_bytes}" if size_bytes else ""))


def mount_bpf(target: Path) -> None:
    """A BPF file system."""
    _mount("bpf", target, "")


def mount_trace(target: Path) -> None:
    """The kernel's tracer."""
    _mount("tracefs", target, "")


def bind(source: Path, target: Path) -> None:
    """What is mounted at one directory is at the other one, too."""
    target.mkdir(parents=True, exist_ok=True)
    if _libc.mount(bytes(source), bytes(target), None, _MS_BIND, None):
        raise LabError(f"mount {source} on {target}: {os.strerror(ctypes.get_errno())}")


def mounted(below: Path) -> list[Path]:
    """Mount points at or below a directory, the latest first: it may hide earlier ones."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [Path(line.split()[1]) for line in lines]
    return [p for p in reversed(points) if p.is_relative_to(below)]


def unmount(below: Path) -> None:
    """Everything at or below a directory."""
    for point in mounted(below):
        if _libc.umount2(bytes(point), _MNT_DETACH):
            raise LabError(f"unmount {point}: {os.strerror(ctypes.get_errno())}")


def remove(directory: Path, up_to: Path) -> None:
    """Unmount and delete a directory, and its parents up to `up_to` once they are empty."""
    unmount(directory)
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):
        for parent in directory.parents:
            parent.rmdir()
            if parent == up_to:
                break
