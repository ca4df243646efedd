# SPDX-License-Identifier: GPL-2.0-only
"""On which CPU the stack takes a frame, and how many may wait for it.

RPS is the kernel's Receive Packet Steering. What cannot be set stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

BACKLOG = Path("/proc/sys/net/core/netdev_max_backlog")
BACKLOG_FRAMES = 10_000  # as packaging/60-colo-ebpf.conf sets it


def backlog_frames() -> int | None:
    """How many frames may wait for one CPU; None: not to be seen from this namespace."""
    try:
        return int(BACKLOG.read_text())
    except OSError:
        return None


def cpu_mask(cpus: Iterable[int]) -> str:
    """CPUs as /sys wants them: hexadecimal, in groups of 32 bits."""
    digits = f"{sum(1 << cpu for cpu in cpus):x}"
    first = len(digits) % 8
    groups = [digits[at : at + 8] for at in range(first, len(digits), 8)]
    return ",".join([digits[:first], *groups] if first else groups)


def steer(ifname: str, cpus: Iterable[int]) -> None:
    """RPS: frames of one connection go to one of these CPUs; of none: they stay where they are."""
    mask = cpu_mask(cpus)
    for queue in Path(f"/sys/class/net/{ifname}/queues").glob("rx-*/rps_cpus"):
        with contextlib.suppress(OSError):
            queue.write_text(f"{mask}\n")
