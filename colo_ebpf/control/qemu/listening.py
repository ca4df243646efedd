# SPDX-License-Identifier: GPL-2.0-only
"""Unix sockets that QEMU listens on, made by the daemon: only root may connect to them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from colo_ebpf.errors import VmError

_BACKLOG = 4


def listen(path: Path) -> socket.socket:
    """In place of whatever has that name. VmError if that cannot be done."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        one.bind(str(path))
        os.chmod(path, 0o600)
        one.listen(_BACKLOG)
    except OSError as e:
        one.close()
        raise VmError(f"cannot listen on {path}: {e.strerror or e}") from e
    return one
