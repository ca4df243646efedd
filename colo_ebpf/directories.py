# SPDX-License-Identifier: GPL-2.0-only
"""Directories of the daemon's in which QEMU, another user, has files."""

from __future__ import annotations

from pathlib import Path

_WAY_THROUGH = 0o111


def make_passable(path: Path) -> None:
    """Make it, and what is missing above it. Others may go through, and not list what is there:
    systemd's units and careful shells have a umask that would forbid both. OSError."""
    missing = [one for one in path.parents if not one.exists()]
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    for one in (*missing, path):
        mode = one.stat().st_mode & 0o7777
        if mode & _WAY_THROUGH != _WAY_THROUGH:
            one.chmod(mode | _WAY_THROUGH)
