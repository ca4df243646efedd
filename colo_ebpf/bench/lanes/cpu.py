# SPDX-License-Identifier: GPL-2.0-only
"""CPU time of the whole machine: a proxy in the kernel works in whatever task it interrupts."""

from __future__ import annotations

import os
from pathlib import Path

_BUSY = (0, 1, 2, 5, 6)  # of the line's fields: user, nice, system, irq, softirq


def parse(stat: str, ticks_per_s: int) -> float:
    """Seconds of work in the first line of /proc/stat."""
    fields = stat.partition("\n")[0].split()[1:]
    return sum(int(fields[place]) for place in _BUSY) / ticks_per_s


def busy_s() -> float:
    """Since boot."""
    return parse(Path("/proc/stat").read_text(), os.sysconf("SC_CLK_TCK"))
