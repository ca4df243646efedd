# SPDX-License-Identifier: GPL-2.0-only
"""The loads with what each lane gave of them, one line for each: for the report. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from colo_ebpf.bench.apps import names
from colo_ebpf.bench.apps.loads import LOADS, Load
from colo_ebpf.bench.apps.targets import broke, of_fixed, of_lockstep, of_stock, of_twins
from colo_ebpf.bench.results import Results, Row, number

HEAD = (
    "load",
    *names.LANES,
    "ours/twins",
    "ours/lockstep",
    "ours/fixed",
    "ours/stock",
    "ours: p50",
    "p99",
    "longest",
    "checkpoints a minute",
    "stopped",
)


def lines(results: Results) -> Iterator[tuple[str, ...]]:
    """As long as HEAD."""
    for load in measured(results):
        rates = [_rate(results.row(names.PART, load.name, lane)) for lane in names.LANES]
        ratios = [find(load)(results) for find in (of_twins, of_lockstep, of_fixed, of_stock)]
        times = [_ours(results, name, load) for name in (names.P50, names.P99, names.LONGEST)]
        yield (
            load.name,
            *rates,
            *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            *times,
            _checkpoints(results, load),
            _ours(results, names.STOPPED, load),
        )


def measured(results: Results) -> list[Load]:
    """Loads with a row in any lane."""
    known = {row.measure for row in results.rows if row.part == names.PART}
    return [load for load in LOADS if load.name in known]


def share_of_twins(results: Results, load: Load, lane: str) -> float:
    """For the bars; 0 where there is nothing to compare."""
    row = results.row(names.PART, load.name, lane)
    if row is None or broke(row):
        return 0.0
    return results.ratio(names.PART, load.name, lane, names.TWINS) or 0.0


def _rate(row: Row | None) -> str:
    if row is None:
        return "-"
    if broke(row) or not row.values:
        return row.note
    return f"{number(row.median)} {row.unit}"


def _ours(results: Results, name: str, load: Load) -> str:
    row = results.row(names.PART, name.format(load.name), names.OURS)
    return f"{number(row.median)} {row.unit}" if row and row.values else "-"


def _checkpoints(results: Results, load: Load) -> str:
    row = results.row(names.PART, names.CHECKPOINTS.format(load.name), names.OURS)
    if row is None or not row.values:
        return "-"
    mean = sum(row.values) / len(row.values)
    return f"{number(mean)} ({row.note})" if mean else "0"
