# SPDX-License-Identifier: GPL-2.0-only
"""What a daemon takes while its pair is protected and nothing happens: processor and memory."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from colo_ebpf.bench.pair.vm_pair import Pair
from colo_ebpf.bench.results import Recorder
from colo_ebpf.errors import BenchError
from colo_ebpf.lab import processes
from colo_ebpf.lab.topology import HOSTS

PART = "control"
_WINDOWS = 3
_MEMORY = {
    "RSS": ("Rss:",),
    "PSS": ("Pss:",),
    "USS": ("Private_Clean:", "Private_Dirty:"),
}


def cpu_s(schedstats: Iterable[str]) -> float:
    """What threads have run, from their /proc/PID/task/TID/schedstat: it counts nanoseconds."""
    return sum(int(text.split()[0]) for text in schedstats) / 1e9


def _used_s(pid: int) -> float:
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return cpu_s(thread.read_text() for thread in threads)


def memory_bytes(rollup: str, names: Collection[str]) -> int:
    """Sum of some lines of /proc/PID/smaps_rollup."""
    lines = [line.split() for line in rollup.splitlines()]
    return sum(int(words[1]) << 10 for words in lines if words[0] in names)


def _daemon(pair: Pair, host: str) -> int:
    pids = processes.pids_of(pair.lab.places[host].namespace, "daemon")
    if len(pids) != 1:
        raise BenchError(f"host {host}: {len(pids)} daemons run there")
    return pids[0]


def _window(sides: Mapping[str, int], seconds: float) -> dict[str, float]:
    """Per cent of a core, by side."""
    before = {side: (_used_s(pid), time.monotonic()) for side, pid in sides.items()}
    time.sleep(seconds)
    return {
        side: 100 * (_used_s(sides[side]) - used_s) / (time.monotonic() - since_s)
        for side, (used_s, since_s) in before.items()
    }


def measure(recorder: Recorder, pair: Pair, seconds: float) -> None:
    """A row for each side and figure."""
    sides = {pair.status(host)["state"]: _daemon(pair, host) for host in HOSTS}
    windows = [_window(sides, seconds / _WINDOWS) for _ in range(_WINDOWS)]
    note = f"% of one core, {_WINDOWS} times {seconds / _WINDOWS:.0f} s"
    for side in sides:
        shares = tuple(window[side] for window in windows)
        recorder.add(PART, "idle daemon, processor", side, "%", values=shares, note=note)
    for side, pid in sides.items():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        for name, lines in _MEMORY.items():
            value = memory_bytes(rollup, lines) / 1e6
            recorder.add(PART, f"idle daemon, {name}", side, "MB", values=(value,))
