# SPDX-License-Identifier: GPL-2.0-only
"""The clock of the BPF programs, which all times in this package are read from."""

from __future__ import annotations

import time


def boot_ns() -> int:
    """CLOCK_BOOTTIME in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def ago_ns(at_ns: int, now_ns: int) -> int:
    """How long ago. What comes while a report is made is later than its `now_ns`: that is now."""
    return max(0, now_ns - at_ns)
