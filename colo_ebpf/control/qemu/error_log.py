# SPDX-License-Identifier: GPL-2.0-only
"""What QEMU writes to its log: the reason, mostly, if it ends."""

from __future__ import annotations

import contextlib
from pathlib import Path

_TAIL_BYTES = 2000


def size(path: Path) -> int:
    """0 if there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def tail(path: Path, since: int = 0) -> str:
    """The end of it, of what was written behind the first `since` bytes; "" if nothing was."""
    with contextlib.suppress(OSError), path.open("rb") as log:
        end = log.seek(0, 2)
        log.seek(max(since if since <= end else 0, end - _TAIL_BYTES))
        return log.read().decode(errors="replace").strip()
    return ""
