# SPDX-License-Identifier: GPL-2.0-only
"""Enter a network namespace with the thread in hand, and only that."""

from __future__ import annotations

import ctypes
import os

_CLONE_NEWNET = 0x40000000


def enter(fd: int) -> None:
    """The namespace behind `fd`, which is closed."""
    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(fd)
