# SPDX-License-Identifier: GPL-2.0-only
"""The daemon, where the watchdog device is a FIFO: what is asked of its driver is answered here.

``python toy_watchdog.py run --config FILE``
"""

from __future__ import annotations

import struct
import sys

from colo_ebpf.cli.main import main
from colo_ebpf.control.host import watchdog

_taken: list[bytes] = []


def _ioctl(_fd: int, request: int, data: bytearray) -> None:
    """As a driver that takes any timeout and lets itself be disarmed."""
    if request == watchdog.GETSUPPORT:
        options = watchdog.CAN_SET_TIMEOUT | watchdog.MAGIC_CLOSE
        data[:] = struct.pack("=II32s", options, 0, b"toy")
    elif request == watchdog.SETTIMEOUT:
        _taken.append(bytes(data))
    else:
        data[:] = _taken[-1]


if __name__ == "__main__":
    watchdog.Watchdog.__init__.__kwdefaults__["ioctl"] = _ioctl
    sys.exit(main())
