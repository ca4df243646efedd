# SPDX-License-Identifier: GPL-2.0-only
"""`report.html`: the targets, the pictures and all figures of a run, for a person to read."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable
from pathlib import Path

from colo_ebpf.bench.apps import names as applications
from colo_ebpf.bench.apps import summary
from colo_ebpf.bench.report import plots
from colo_ebpf.bench.report.target import Outcome, Verdict
from colo_ebpf.bench.report.targets import TARGETS
from colo_ebpf.bench.results import Results, Row, number
from colo_ebpf.bench.suite import LANES, PARTS
from colo_ebpf.errors import BenchError

_TITLES = {
    "applications": "Applications: what users feel alone, in our pair and in QEMU's own",
    "lanes": "Lanes: client, bridge and server behind nothing, QEMU's proxy, and ours",
    "alone": "The comparers alone",
    "programs": "The programs, path by path",
    "growth": "Growth",
    "control": "The control plane, with real guests",
}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.met { color: #1b7f4d; } .missed { color: #b3261e; font-weight: 600; } .not { color: #777; }
img { max-width: 100%; } small { color: #666; }
"""


def write(results: Results, directory: Path) -> Path:
    """Pictures and page; returns the page. Raises BenchError."""
    pictures = plots.draw(results, directory)
    page = directory / "report.html"
    try:
        page.write_text(_page(results, pictures))
    except OSError as e:
        raise BenchError(f"{page}: {e.strerror}: name another directory with --out") from e
    return page


def verdicts(results: Results) -> list[Verdict]:
    """Every target, judged."""
    return [target.judge(results) for target in TARGETS]


def _page(results: Results, pictures: list[tuple[str, Path]]) -> str:
    shown = "".join(
        f"<h3>{_text(title)}</h3><img src='{_text(path.name)}' alt='{_text(title)}'>"
        for title, path in pictures
    )
    parts = "".join(
        f"<h2>{_text(_TITLES[part])}</h2>{_part(results, part)}"
        for part in PARTS
        if any(row.part == part for row in results.rows)
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>colo-ebpf benchmarks</title>"
        f"<style>{_STYLE}</style><h1>colo-ebpf benchmarks</h1>{_machine(results)}"
        f"<h2>Targets</h2>{_targets(verdicts(results))}<h2>Pictures</h2>{shown}{parts}</html>\n"
    )


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _machine(results: Results) -> str:
    m = results.machine
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(results.started_s))
    kind = "quick run" if results.quick else "full run"
    return (
        f"<p>{when}, {kind} of {results.took_s / 60:.0f} min. {m.cpus} CPUs ({_text(m.cpu)}), "
        f"{m.memory_bytes / 2**30:.0f} GiB, Linux {_text(m.kernel)}, {_text(m.qemu)}, "
        f"Python {_text(m.python)}.<br><small>Lanes were measured in turn; ratios are medians of "
        "readings that were taken one after the other. Figures of two machines or two runs are not "
        "to be compared.</small></p>"
    )


def _table(head: Iterable[tuple[str, bool]], rows: Iterable[str]) -> str:
    cells = "".join(f"<th{' class=n' if right else ''}>{_text(t)}</th>" for t, right in head)
    return f"<table><tr>{cells}</tr>{''.join(rows)}</table>"


_CLASSES = {
    Outcome.MET: "met",
    Outcome.LIMIT: "not",
    Outcome.MISSED: "missed",
    Outcome.NOT_MEASURED: "not",
}


def _targets(found: list[Verdict]) -> str:
    rows = (
        f"<tr><td>{_text(v.measure)}</td><td>{_text(v.target)}</td><td class=n>{_text(v.found)}"
        f"</td><td class={_CLASSES[v.outcome]}>{v.outcome.value}</td></tr>"
        for v in found
    )
    head = (("measure", False), ("target", False), ("found", True), ("", False))
    return _table(head, rows)


def _part(results: Results, part: str) -> str:
    if part != applications.PART:
        return _figures(results, part)
    figures = _figures(results, part)
    return f"{_loads(results)}<details><summary>All figures</summary>{figures}</details>"


def _loads(results: Results) -> str:
    rows = (
        f"<tr><td>{_text(load)}</td>{''.join(f'<td class=n>{_text(c)}</td>' for c in cells)}</tr>"
        for load, *cells in summary.lines(results)
    )
    return _table(((title, n > 0) for n, title in enumerate(summary.HEAD)), rows)


def _figures(results: Results, part: str) -> str:
    head = [("measure", False), ("lane", False), ("median", True), ("spread", True)]
    peers = [("of plain", True), ("of qemu", True)] if part == "lanes" else []
    rows = (
        _figure(results, row, with_peers=bool(peers)) for row in results.rows if row.part == part
    )
    return _table([*head, *peers, ("", False)], rows)


def _figure(results: Results, row: Row, *, with_peers: bool) -> str:
    median, spread = "", ""
    if row.values:
        median = f"{number(row.median)} {row.unit}"
        spread = f"{number(min(row.values))} .. {number(max(row.values))}"
    cells = [median, spread if len(row.values) > 1 else ""]
    if with_peers:
        cells += [_share(results, row, peer) for peer in LANES[:2]]
    numbers = "".join(f"<td class=n>{_text(cell)}</td>" for cell in cells)
    return (
        f"<tr><td>{_text(row.measure)}</td><td>{_text(row.lane)}</td>{numbers}"
        f"<td><small>{_text(row.note)}</small></td></tr>"
    )


def _share(results: Results, row: Row, peer: str) -> str:
    if row.lane == peer:
        return ""
    ratio = results.ratio(row.part, row.measure, row.lane, peer)
    return "" if ratio is None else f"{ratio:.2f}x"
