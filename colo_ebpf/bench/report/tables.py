# SPDX-License-Identifier: GPL-2.0-only
"""Targets, applications and lanes of a run as Markdown, for docs/understand/performance.md
(`bench/tables.md`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from colo_ebpf.bench import names
from colo_ebpf.bench.apps import summary
from colo_ebpf.bench.report.targets import TARGETS
from colo_ebpf.bench.results import Results, Row, number
from colo_ebpf.errors import BenchError

_LANES = (names.PLAIN, names.QEMU, names.OURS, names.LIMIT)
_PEERS = (names.PLAIN, names.QEMU, names.LIMIT)


def write(results: Results, directory: Path) -> Path:
    """Raises BenchError."""
    page = directory / "tables.md"
    try:
        parts = (targets(results), applications(results), lanes(results))
        page.write_text("\n\n".join("\n".join(part) for part in parts) + "\n")
    except OSError as e:
        raise BenchError(f"{page}: {e.strerror}: name another directory with --out") from e
    return page


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    cells = list(head)
    lines = [f"| {' | '.join(cells)} |", "|" + "---|" * len(cells)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def targets(results: Results) -> list[str]:
    """One line per target."""
    found = [target.judge(results) for target in TARGETS]
    rows = ((v.measure, v.target, v.found or "-", v.outcome.value) for v in found)
    return _table(("measure", "target", "found", ""), rows)


def applications(results: Results) -> list[str]:
    """One line per load."""
    return _table(summary.HEAD, summary.lines(results))


def lanes(results: Results) -> list[str]:
    """One line per measure; ratios are medians of pairs."""
    measures = dict.fromkeys(row.measure for row in results.rows if row.part == names.LANES)
    rows = (_measure(results, measure) for measure in measures)
    head = ("measure", *_LANES, *(f"ours/{peer}" for peer in _PEERS))
    return _table(head, rows)


def _measure(results: Results, measure: str) -> list[str]:
    found = [results.row(names.LANES, measure, lane) for lane in _LANES]
    ratios = [results.ratio(names.LANES, measure, names.OURS, peer) for peer in _PEERS]
    shares = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return [measure, *map(_told, found), *shares]


def _told(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{number(row.median)} {row.unit}" if row.values else (row.note or "no figure")
