# SPDX-License-Identifier: GPL-2.0-only
"""What the vCPU threads of a QEMU have done, from `/proc` (proc(5)).

`task/TID/schedstat` begins with the nanoseconds a thread has run; `task/TID/stat` has its state
behind its name. A kernel without CONFIG_SCHED_INFO has no schedstat: then nothing is known, and a
vCPU counts as working.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colo_ebpf.control.checkpoint.watch import Work

UNKNOWN = Work((), True)


def _state(stat: str) -> str:
    """R, S, D, ...: the first word behind the name, which may have blanks and brackets itself."""
    return stat[stat.rfind(")") + 2 :][:1]


def look(pid: int, threads: Sequence[int]) -> Work:
    """What these threads of the process have done, and whether any thread of it is at work.

    The main loop counts: it brings the input to the guest. While the main loop waits for a
    processor of the host, the vCPUs sleep, and the SVM is not idle at all.
    """
    tasks = Path(f"/proc/{pid}/task")
    try:
        ran_ns = [int((tasks / str(t) / "schedstat").read_text().split()[0]) for t in threads]
        states = {_state((task / "stat").read_text()) for task in tasks.iterdir()}
    except (OSError, ValueError, LookupError):  # a worker that has ended, or all of them
        return UNKNOWN
    return Work(tuple(ran_ns), bool({"R", "D"} & states))
