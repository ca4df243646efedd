# SPDX-License-Identifier: GPL-2.0-only
"""What the vCPU threads of a QEMU have done, from `/proc` (proc(5)).

`task/TID/schedstat` begins with the nanoseconds a thread has run; `task/TID/stat` has its state
behind its name. A kernel without CONFIG_SCHED_INFO has no schedstat: then nothing is known, and a
vCPU counts as working.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colo_ebpf.control.watch import Work

UNKNOWN = Work((), True)


def _state(stat: str) -> str:
    """R, S, D, ...: the first word behind the name, which may have blanks and brackets itself."""
    return stat[stat.rfind(")") + 2 :][:1]


def look(pid: int, threads: Sequence[int]) -> Work:
    """Of these threads of the process; of the others only whether one waits for a disk."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        ran_ns = [int((tasks / str(t) / "schedstat").read_text().split()[0]) for t in threads]
        states = {task.name: _state((task / "stat").read_text()) for task in tasks.iterdir()}
        vcpus = [states[str(t)] for t in threads]
    except (OSError, ValueError, LookupError):  # a worker that has ended, or all of them
        return UNKNOWN
    return Work(tuple(ran_ns), "R" in vcpus or "D" in states.values())
