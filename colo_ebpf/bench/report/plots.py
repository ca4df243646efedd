# SPDX-License-Identifier: GPL-2.0-only
"""The pictures of a run: bars by lane, and every plot that the parts drew points for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colo_ebpf.bench import names
from colo_ebpf.bench.apps import names as applications
from colo_ebpf.bench.apps import summary
from colo_ebpf.bench.apps.loads import Load
from colo_ebpf.bench.results import Curve, Results, Row, number
from colo_ebpf.bench.suite import LANES
from colo_ebpf.errors import BenchError

_COLOURS = {
    "plain": "#7f7f7f",
    "qemu": "#d95f02",
    "ours": "#1b9e77",
    "alone": "#bdbdbd",
    "twins": "#7f7f7f",
    "lockstep": "#7570b3",
    "ours-compare": "#66c2a5",
    "ours-periodic": "#a6d854",
    "stock": "#d95f02",
    "stock-500": "#e6ab02",
}
_MOMENTS = {names.KILL: ("-", "#c00000"), names.CHECKPOINT: (":", "#555555")}
_SIZE = (9.0, 4.5)  # inches
_LOG_ABOVE = 100  # largest x over the smallest: from here on the axis is logarithmic


def draw(results: Results, directory: Path) -> list[tuple[str, Path]]:
    """PNG files, (title, path) each. Raises BenchError without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError as e:
        raise BenchError(
            "no pictures without matplotlib: pip install 'colo-ebpf[bench]'; the figures are saved"
        ) from e
    mpl.use("Agg")
    made = []
    if loads := summary.measured(results):
        made.append(
            ("Applications, each load relative to twins", _loads(results, loads, directory))
        )
    if any(row.part == "lanes" for row in results.rows):
        made.append(("Lanes, each measure relative to plain", _bars(results, directory)))
    by_plot: dict[str, list[Curve]] = defaultdict(list)
    for curve in results.curves:
        by_plot[curve.plot].append(curve)
    for title, curves in by_plot.items():
        made.append((title, _lines(title, curves, directory)))
    return made


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=_SIZE, layout="constrained")
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def _save(figure: Any, title: str, directory: Path) -> Path:
    from matplotlib import pyplot

    path = directory / (re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + ".png")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def comparable(results: Results) -> list[str]:
    """Measures of the lanes that plain has, and another one too; rates and bytes, not latencies."""
    found = []
    for row in results.rows:
        others = [results.row("lanes", row.measure, lane) for lane in LANES if lane != "plain"]
        rate = row.unit.endswith("/s")
        if row.part == "lanes" and row.lane == "plain" and rate and row.values and any(others):
            found.append(row.measure)
    return found


def _bars(results: Results, directory: Path) -> Path:
    title = "lanes relative to plain"
    measures = comparable(results)
    figure, axes = _figure("Throughput by lane, plain = 100 % (median of pairs)")
    figure.set_size_inches(_SIZE[0], 1.2 + 0.42 * len(measures))
    for index, lane in enumerate(LANES):
        share = [100 * (results.ratio("lanes", m, lane, "plain") or 0.0) for m in measures]
        places = [n + (index - 1) * 0.27 for n in range(len(measures))]
        bars = axes.barh(places, share, 0.25, color=_COLOURS[lane], label=lane)
        told = [_told(results.row("lanes", m, lane)) for m in measures]
        axes.bar_label(bars, told, padding=3, fontsize=7)
    axes.set_yticks(range(len(measures)), measures, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("% of plain")
    axes.margins(x=0.18)
    axes.legend(fontsize=8)
    return _save(figure, title, directory)


def _loads(results: Results, loads: Sequence[Load], directory: Path) -> Path:
    figure, axes = _figure("Rate by lane, twins = 100 % (median of pairs)")
    figure.set_size_inches(_SIZE[0], 1.2 + 0.74 * len(loads))
    high, middle = 0.8 / len(applications.LANES), (len(applications.LANES) - 1) / 2
    for index, lane in enumerate(applications.LANES):
        share = [100 * summary.share_of_twins(results, load, lane) for load in loads]
        places = [n + (index - middle) * high for n in range(len(loads))]
        bars = axes.barh(places, share, 0.9 * high, color=_COLOURS[lane], label=lane)
        told = [_told(results.row(applications.PART, load.name, lane)) for load in loads]
        axes.bar_label(bars, told, padding=3, fontsize=6)
    axes.set_yticks(range(len(loads)), [load.name for load in loads], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("% of twins")
    axes.margins(x=0.18, y=0.01)
    axes.legend(fontsize=8)
    return _save(figure, "applications relative to twins", directory)


def _told(row: Row | None) -> str:
    if row is None or not row.values:
        return row.note if row else ""
    return f"{number(row.median)} {row.unit}"


def _lines(title: str, curves: list[Curve], directory: Path) -> Path:
    figure, axes = _figure(title)
    for curve in curves:
        xs, ys = zip(*curve.points, strict=True)
        colour = _COLOURS.get(curve.line)
        if curve.moments:
            _moments(axes, curve.line, xs)
        elif len(set(xs)) < len(xs) or len(xs) > 60:
            axes.plot(xs, ys, label=curve.line, color=colour, linewidth=1.3)
        else:
            axes.plot(xs, ys, label=curve.line, color=colour, marker="o", markersize=3.5)
    positive = [x for curve in curves for x, _ in curve.points if x > 0]
    none_negative = all(x >= 0 for curve in curves for x, _ in curve.points)
    if positive and none_negative and max(positive) / min(positive) > _LOG_ABOVE:
        axes.set_xscale("log")
    axes.set_xlabel(curves[0].x)
    axes.set_ylabel(" / ".join(dict.fromkeys(c.y for c in curves if not c.moments)))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return _save(figure, title, directory)


def _moments(axes: Any, label: str, xs: Sequence[float]) -> None:
    style, colour = _MOMENTS[label]
    for n, x in enumerate(xs):
        axes.axvline(x, label=label if n == 0 else None, color=colour, linestyle=style, alpha=0.6)
