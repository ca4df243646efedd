# SPDX-License-Identifier: GPL-2.0-only
"""What a client saw of one load, from what its tool says. Pure."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from colo_ebpf.bench.lanes.workload import percentile
from colo_ebpf.errors import BenchError


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one client: answers a second (or MB/s), and how long one took."""

    rate: float
    p50_ms: float
    p99_ms: float
    longest_ms: float


def mean(readings: Sequence[Reading]) -> Reading:
    """Of clients that worked at the same time: what one of them saw."""
    many = len(readings)
    return Reading(
        rate=sum(one.rate for one in readings) / many,
        p50_ms=sum(one.p50_ms for one in readings) / many,
        p99_ms=sum(one.p99_ms for one in readings) / many,
        longest_ms=max(one.longest_ms for one in readings),
    )


def of_times(times_ms: Iterable[float], seconds: float, each: float = 1) -> Reading:
    """From what every request took; `each` is what one counts. BenchError without any."""
    ordered = sorted(times_ms)
    if not ordered:
        raise BenchError(f"nothing was answered in {seconds:.1f} s")
    return Reading(
        rate=each * len(ordered) / seconds,
        p50_ms=percentile(ordered, 0.5),
        p99_ms=percentile(ordered, 0.99),
        longest_ms=ordered[-1],
    )


def ab(said: str, shares: str) -> Reading:
    """ApacheBench: its report, and the table of its option -e (share, milliseconds)."""
    done = int(_number(r"^Complete requests:\s+(\d+)", said, "ab"))
    seconds = _number(r"^Time taken for tests:\s+([\d.]+)", said, "ab")
    failed = int(_number(r"^Failed requests:\s+(\d+)", said, "ab"))
    if done <= failed:
        raise BenchError(f"nothing was answered in {seconds:.1f} s")
    times_ms = {int(row[0]): float(row[1]) for row in csv.reader(shares.splitlines()[1:])}

    def share_ms(percent: int) -> float:
        # Of a few requests ab prints 0 where the rounded place is behind the last one.
        behind = int(0.5 + done * percent / 100) >= done
        return times_ms[100 if behind else percent]

    return Reading((done - failed) / seconds, share_ms(50), share_ms(99), times_ms[100])


def redis(said: str) -> Reading:
    """redis-benchmark --csv, of one command."""
    rows = list(csv.DictReader(said.splitlines()))
    if len(rows) != 1 or "max_latency_ms" not in rows[0]:
        raise BenchError(f"redis-benchmark said: {said.strip()[-200:]!r}")
    row = rows[0]
    return Reading(
        rate=float(row["rps"]),
        p50_ms=float(row["p50_latency_ms"]),
        p99_ms=float(row["p99_latency_ms"]),
        longest_ms=float(row["max_latency_ms"]),
    )


def pgbench(said: str, logged: str) -> Reading:
    """pgbench: its report, and its log (the third word: microseconds of a transaction)."""
    seconds = _number(r"^duration: (\d+) s", said, "pgbench")
    found = of_times((int(line.split()[2]) / 1000 for line in logged.splitlines()), seconds)
    rate = _number(r"^tps = ([\d.]+)", said, "pgbench")
    return Reading(rate, found.p50_ms, found.p99_ms, found.longest_ms)


def transfers(said: str) -> Reading:
    """curl: a line "BYTES SECONDS" of each file. The rate is in MB/s."""
    rows = [(int(size), float(took)) for size, took in map(str.split, said.splitlines())]
    seconds = sum(took for _, took in rows)
    moved = sum(size for size, _ in rows)
    if not moved:
        raise BenchError(f"nothing was transferred in {seconds:.1f} s")
    found = of_times((took * 1000 for _, took in rows), seconds)
    return Reading(moved / 1e6 / seconds, found.p50_ms, found.p99_ms, found.longest_ms)


def _number(pattern: str, said: str, tool: str) -> float:
    found = re.search(pattern, said, re.MULTILINE)
    if found is None:
        raise BenchError(f"{tool} said: {said.strip()[-200:]!r}")
    return float(found[1])
