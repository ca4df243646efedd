# SPDX-License-Identifier: GPL-2.0-only
"""What a daemon takes while its pair is protected and nothing happens: processor and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

from colo_ebpf.bench.pair import Pair
from colo_ebpf.bench.results import Recorder
from colo_ebpf.errors import BenchError
from colo_ebpf.lab import processes
from colo_ebpf.lab.topology import HOSTS

PART = "control"
_MEMORY = {
    "RSS": ("Rss:",),
    "PSS": ("Pss:",),
    "USS": ("Private_Clean:", "Private_Dirty:"),
}


def cpu_s(stat: str) -> float:
    """User and system time of a process and its threads, from /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(rollup: str, names: Collection[str]) -> int:
    """Sum of some lines of /proc/PID/smaps_rollup."""
    lines = [line.split() for line in rollup.splitlines()]
    return sum(int(words[1]) << 10 for words in lines if words[0] in names)


def _daemon(pair: Pair, host: str) -> int:
    pids = processes.pids_of(pair.lab.places[host].namespace, "daemon")
    if len(pids) != 1:
        raise BenchError(f"host {host}: {len(pids)} daemons run there")
    return pids[0]


def measure(recorder: Recorder, pair: Pair, seconds: float) -> None:
    """A row for each side and figure."""
    sides = {pair.status(host)["state"]: _daemon(pair, host) for host in HOSTS}
    stats = {side: Path(f"/proc/{pid}/stat") for side, pid in sides.items()}
    before = {side: (cpu_s(path.read_text()), time.monotonic()) for side, path in stats.items()}
    time.sleep(seconds)
    for side, path in stats.items():
        used, since = before[side]
        share = 100 * (cpu_s(path.read_text()) - used) / (time.monotonic() - since)
        note = f"% of one core over {seconds:.0f} s"
        recorder.add(PART, "idle daemon, processor", side, "%", values=(share,), note=note)
    for side, pid in sides.items():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        for name, lines in _MEMORY.items():
            value = memory_bytes(rollup, lines) / 1e6
            recorder.add(PART, f"idle daemon, {name}", side, "MB", values=(value,))
