# SPDX-License-Identifier: GPL-2.0-only
"""What a run of the benchmarks found: rows and curves, and the one JSON file they are kept in."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from colo_ebpf.errors import BenchError

LAYOUT = 1


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Repeated readings of one measure in one lane, in the order they were taken.

    The n-th readings of the lanes of a measure were taken one after the other: they are a pair.
    """

    part: str  # "applications", "lanes", "alone", "programs", "growth" or "control"
    measure: str  # "bulk download", the same in all its lanes
    lane: str  # "plain", "qemu", "ours", or what else is compared
    unit: str  # "MB/s", "ns", ...
    values: tuple[float, ...]  # may be empty: the note says why
    note: str = ""

    @property
    def median(self) -> float:
        """NaN without readings."""
        return statistics.median(self.values) if self.values else float("nan")


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Points of one line of a plot; lines with the same `plot` share one."""

    part: str
    plot: str  # the plot's title
    line: str  # the line's label
    x: str  # what is across, with its unit
    y: str  # what is up, with its unit
    points: tuple[tuple[float, float], ...]
    moments: bool = False  # only the x counts: something happened then


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it ran: figures of two machines are not to be compared."""

    cpus: int
    memory_bytes: int
    kernel: str
    cpu: str
    qemu: str
    python: str

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        return cls(
            cpus=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            kernel=platform.release(),
            cpu=_cpu_model(),
            qemu=_first_line(["qemu-system-x86_64", "--version"]),
            python=platform.python_version(),
        )


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All of one run."""

    layout: int
    machine: Machine
    started_s: float  # of the wall clock
    took_s: float
    quick: bool
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]

    def row(self, part: str, measure: str, lane: str) -> Row | None:
        """The row, if it was measured."""
        for one in self.rows:
            if (one.part, one.measure, one.lane) == (part, measure, lane):
                return one
        return None

    def ratio(self, part: str, measure: str, lane: str, peer: str) -> float | None:
        """Median of lane/peer, reading by reading; None without a pair."""
        one, other = self.row(part, measure, lane), self.row(part, measure, peer)
        if one is None or other is None:
            return None
        pairs = [a / b for a, b in zip(one.values, other.values, strict=False) if b]
        return statistics.median(pairs) if pairs else None


class Recorder:
    """What the parts of a run write into, and their progress."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._started_s, self._started = time.time(), time.monotonic()
        self._rows: list[Row] = []
        self._curves: list[Curve] = []

    def say(self, text: str) -> None:
        """A line of progress, with the time since the start."""
        elapsed_s = int(time.monotonic() - self._started)
        self._say(f"{elapsed_s // 60:3d}:{elapsed_s % 60:02d} {text}")

    def add(
        self,
        part: str,
        measure: str,
        lane: str,
        unit: str,
        *,
        values: Iterable[float],
        note: str = "",
        aloud: bool = True,
    ) -> Row:
        """Keep a row, and say it unless it is one of very many."""
        row = Row(part=part, measure=measure, lane=lane, unit=unit, values=tuple(values), note=note)
        self._rows.append(row)
        if aloud:
            self.say(f"{part}: {measure}, {lane}: {readable(row)}")
        return row

    def curve(self, curve: Curve) -> None:
        """Keep a line of a plot."""
        self._curves.append(curve)

    def results(self, quick: bool) -> Results:
        """All so far."""
        return Results(
            layout=LAYOUT,
            machine=Machine.here(),
            started_s=self._started_s,
            took_s=time.monotonic() - self._started,
            quick=quick,
            rows=tuple(self._rows),
            curves=tuple(self._curves),
        )


def readable(row: Row) -> str:
    """Median and spread, or the note alone."""
    note = f" ({row.note})" if row.note else ""
    if not row.values:
        return f"no figure{note}"
    spread = f" [{number(min(row.values))}..{number(max(row.values))}]"
    return f"{number(row.median)} {row.unit}{spread if len(row.values) > 1 else ''}{note}"


def number(value: float) -> str:
    """Three figures that count, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(results: Results, path: Path) -> None:
    """One JSON file. Raises BenchError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    except OSError as e:
        raise BenchError(f"{path}: {e.strerror}: name another directory with --out") from e


def load(path: Path) -> Results:
    """What `save` wrote. Raises BenchError."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Results)
    except OSError as e:
        raise BenchError(f"{path}: {e.strerror}: run `colo-ebpf bench` first") from e
    except msgspec.MsgspecError as e:
        raise BenchError(f"{path}: no results of a benchmark: {e}") from e
    if found.layout != LAYOUT:
        raise BenchError(f"{path}: of another version (layout {found.layout}): measure again")
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(argv: list[str]) -> str:
    try:
        said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return "none"
    return said.partition("\n")[0]
