# SPDX-License-Identifier: GPL-2.0-only
"""A timeline as one page of HTML that needs nothing else: no script, no other file. Pure."""

from __future__ import annotations

import datetime
import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from colo_ebpf.cli.timeline import Bar, Timeline

_WIDTH, _LEFT, _LANE, _GAP = 1000, 120, 46, 14
_TICKS = 8
_COLOURS = {
    "primary": "#1b7f4d",
    "secondary": "#2f6fb0",
    "solo": "#d08700",
    "pairing": "#e3b341",
    "joining": "#8fb8de",
    "standby": "#b8b8b8",
    "off": "#8a8a8a",
    "": "#eeeeee",
}
_ALARMING = "#b3261e"  # of every other state
_CAUSES = ("#2f6fb0", "#1b7f4d", "#d08700", "#7b4fa3", "#b3261e", "#4b9a9a", "#8a6d3b", "#777777")
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #444; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }
td { vertical-align: top; }
.key { display: inline-block; margin-right: 1rem; } .key i { display: inline-block; width: .8em;
  height: .8em; margin-right: .35em; } .missing { color: #b3261e; } small { color: #666; }
"""
# Nothing is loaded or run, whatever a guest's words may look like.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(line: Timeline) -> str:
    """The whole page."""
    title = f"{_text(line.vm)} on {_text(line.host)}"
    missing = f"<p class='missing'>{_text(line.missing)}</p>" if line.missing else ""
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{_POLICY}\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{title}</h1><p>{_span(line)}</p>{missing}{_summary(line)}"
        f"{_picture(line)}{_keys(line)}{_changes(line)}{_sentences(line)}"
        "</body></html>\n"
    )


def _text(value: Any) -> str:
    """Escaped, and without what is no character of HTML."""
    said = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return html.escape(said)


def _time(at_s: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    return datetime.datetime.fromtimestamp(at_s).astimezone().strftime(form)


def _span(line: Timeline) -> str:
    zone = datetime.datetime.fromtimestamp(line.end_s).astimezone().tzname()
    return f"{_time(line.begin_s)} to {_time(line.end_s)} {_text(zone)}"


def _summary(line: Timeline) -> str:
    silent_ms = sum(one.end_s - one.begin_s for one in line.silences) * 1000
    causes = _by_cause(line)
    pauses = [one["pause_ms"] for one in line.samples if one["pause_ms"]]
    rows = (
        ("no host served", f"{len(line.silences)} times, {silent_ms:.0f} ms in all"),
        ("checkpoints", f"{sum(causes.values())}: " + _list(causes)),
        ("longest pause of the VM", f"{max(pauses):.1f} ms" if pauses else "none"),
        ("most frames held", str(max((one["held_frames"] for one in line.samples), default=0))),
    )
    return _table((), rows)


def _by_cause(line: Timeline) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in line.samples:
        for cause, count in one["checkpoints"].items():
            found[cause] = found.get(cause, 0) + count
    return found


def _list(causes: dict[str, int]) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in causes.items()) or "none"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f"<th>{_text(one)}</th>" for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{f'<tr>{heads}</tr>' if head else ''}{body}</table>"


# --- the picture --------------------------------------------------------------------------


def _picture(line: Timeline) -> str:
    lanes: tuple[tuple[str, Callable[[Timeline, float], Iterator[str]]], ...] = (
        (line.host, lambda one, top: _states(one, one.here, top)),
        (line.peer, lambda one, top: _states(one, one.there, top)),
        ("frames held", lambda one, top: _area(one, "held_frames", top)),
        ("checkpoints", _checkpoints),
        ("longest pause, ms", lambda one, top: _area(one, "pause_ms", top)),
    )
    height = len(lanes) * (_LANE + _GAP) + 24
    parts = [f"<svg viewBox='0 0 {_WIDTH} {height}' role='img' aria-label='timeline'>"]
    parts += _ticks(line, height)
    for number, (name, draw) in enumerate(lanes):
        top = number * (_LANE + _GAP)
        parts.append(f"<text x='0' y='{top + _LANE / 2 + 4:.1f}'>{_text(name)}</text>")
        parts += draw(line, top)
    parts += _silences(line, height - 24)
    return "".join(parts) + "</svg>"


def _x(line: Timeline, at_s: float) -> float:
    share = (at_s - line.begin_s) / max(line.end_s - line.begin_s, 1e-9)
    return _LEFT + min(max(share, 0.0), 1.0) * (_WIDTH - _LEFT)


def _ticks(line: Timeline, height: float) -> Iterator[str]:
    short = line.end_s - line.begin_s < 2 * 3600
    for number in range(_TICKS + 1):
        at_s = line.begin_s + number * (line.end_s - line.begin_s) / _TICKS
        x = _x(line, at_s)
        yield f"<line x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='{height - 22:.1f}' stroke='#eee'/>"
        anchor = "end" if number == _TICKS else "middle" if number else "start"
        when = _time(at_s, "%H:%M:%S" if short else "%d. %H:%M")
        yield f"<text x='{x:.1f}' y='{height - 6:.1f}' text-anchor='{anchor}'>{when}</text>"


def _states(line: Timeline, bars: Sequence[Bar], top: float) -> Iterator[str]:
    for bar in bars:
        colour = _COLOURS.get(bar.state, _ALARMING)
        name = _text(bar.state or "not heard")
        yield _rect(_Box(line, bar.begin_s, bar.end_s, top, _LANE), colour, name)


@dataclass(frozen=True, slots=True)
class _Box:
    line: Timeline
    begin_s: float
    end_s: float
    top: float
    height: float


def _rect(box: _Box, colour: str, said: str) -> str:
    """At least a pixel wide: a silence is short."""
    x = _x(box.line, box.begin_s)
    width = max(_x(box.line, box.end_s) - x, 1.0)
    return (
        f"<rect x='{x:.2f}' y='{box.top:.1f}' width='{width:.2f}' height='{box.height:.1f}' "
        f"fill='{colour}'><title>{said}</title></rect>"
    )


def _area(line: Timeline, key: str, top: float) -> Iterator[str]:
    most = max((float(one[key]) for one in line.samples), default=0.0)
    if not most:
        return
    bottom = top + _LANE
    points = [(_x(line, one["at_s"]), bottom - _LANE * one[key] / most) for one in line.samples]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    first, last = points[0][0], points[-1][0]
    around = f"{first:.1f},{bottom:.1f} {path} {last:.1f},{bottom:.1f}"
    yield f"<polygon points='{around}' fill='#2f6fb055'/>"
    yield f"<polyline points='{path}' fill='none' stroke='#2f6fb0'/>"
    yield f"<text x='{_WIDTH}' y='{top + 10:.1f}' text-anchor='end'>{most:.0f}</text>"


def _checkpoints(line: Timeline, top: float) -> Iterator[str]:
    """A bar for each sample, a colour for each cause."""
    most = max((sum(one["checkpoints"].values()) for one in line.samples), default=0)
    colours = _colours(line)
    for before, one in zip((None, *line.samples), line.samples, strict=False):
        begin_s = before["at_s"] if before else one["at_s"] - 10
        y = top + _LANE
        for cause, count in one["checkpoints"].items():
            height = _LANE * count / most
            y -= height
            said = _text(f"{count} {cause}")
            yield _rect(_Box(line, begin_s, one["at_s"], y, height), colours[cause], said)
    if most:
        yield f"<text x='{_WIDTH}' y='{top + 10:.1f}' text-anchor='end'>{most}</text>"


def _colours(line: Timeline) -> dict[str, str]:
    return {
        cause: _CAUSES[number % len(_CAUSES)]
        for number, cause in enumerate(sorted(_by_cause(line)))
    }


def _silences(line: Timeline, height: float) -> Iterator[str]:
    for one in line.silences:
        said = _text(f"no host served for {(one.end_s - one.begin_s) * 1000:.0f} ms: {one.why}")
        yield _rect(_Box(line, one.begin_s, one.end_s, 0, height), "#b3261e88", said)


# --- below it -----------------------------------------------------------------------------


def _keys(line: Timeline) -> str:
    states = dict.fromkeys(bar.state for bar in (*line.here, *line.there))
    keys = [(state or "not heard", _COLOURS.get(state, _ALARMING)) for state in states]
    keys += [(f"checkpoint: {cause}", colour) for cause, colour in _colours(line).items()]
    keys += [("no host served", "#b3261e88")] if line.silences else []
    shown = "".join(
        f"<span class='key'><i style='background:{colour}'></i>{_text(name)}</span>"
        for name, colour in keys
    )
    return f"<p>{shown}</p>"


def _changes(line: Timeline) -> str:
    rows = [
        (
            _time(row["at_s"]) + f".{int(row['at_s'] * 1000) % 1000:03d}",
            str(row.get("generation", "?")),
            f"{row.get('from', '?')} to {row.get('to', '?')}",
            str(row.get("by", "?")),
            f"{row['silence_ms']:.0f} ms" if row.get("silence_ms") else "",
            str(row.get("why", "")),
        )
        for row in line.rows
    ]
    head = ("when", "generation", "state", "by", "no host served", "why")
    shown = _table(head, rows) if rows else "<p>None.</p>"
    return f"<h2>Changes of state on {_text(line.host)}</h2>{shown}"


def _sentences(line: Timeline) -> str:
    if not line.sentences:
        return ""
    rows = [
        (_time(at_s) + f".{int(at_s * 1000) % 1000:03d}", said) for at_s, said in line.sentences
    ]
    return f"<h2>What the daemon said</h2>{_table(('when', 'sentence'), rows)}"
