# SPDX-License-Identifier: GPL-2.0-only
"""The clock of the BPF programs, which all times in this package are read from."""

from __future__ import annotations

import time


def boot_ns() -> int:
    """CLOCK_BOOTTIME in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
