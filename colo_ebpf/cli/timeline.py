# SPDX-License-Identifier: GPL-2.0-only
"""What a report shows of a VM, cut to the hours or to the failover that is asked for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from colo_ebpf.errors import ControlError

_SERVES = ("solo", "pairing", "primary")
AROUND_S = 120.0  # of a failover, to both sides


@dataclass(frozen=True, slots=True)
class Bar:
    """A state, and for how long."""

    state: str
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Silence:
    """No host served."""

    begin_s: float
    end_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Unix time, seconds. Samples and rows are as the daemon and the history have them."""

    vm: str
    host: str
    peer: str
    begin_s: float
    end_s: float
    rows: Sequence[dict[str, Any]] = ()
    samples: Sequence[dict[str, Any]] = ()
    sentences: Sequence[tuple[float, str]] = ()
    missing: str = ""  # why something is not shown
    here: Sequence[Bar] = field(default=())
    there: Sequence[Bar] = field(default=())
    silences: Sequence[Silence] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """All that could be found out."""

    vm: str
    host: str
    peer: str
    now_s: float
    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    sentences: list[tuple[float, str]]
    missing: str = ""


def of_hours(known: Known, hours: float) -> Timeline:
    """The last ones."""
    return _cut(known, known.now_s - hours * 3600, known.now_s)


def of_failover(known: Known, number: int) -> Timeline:
    """1: the newest one. ControlError if there was none."""
    found = [row for row in known.rows if _is_failover(row)]
    if len(found) < number:
        count = f"{len(found)} of them" if found else "none"
        raise ControlError(f"{known.host} has seen {count}: no failover {number} of {known.vm}")
    at_s = float(found[-number]["at_s"])
    return _cut(known, at_s - AROUND_S, min(at_s + AROUND_S, known.now_s))


def _is_failover(row: dict[str, Any]) -> bool:
    """This host served after it, or lost it."""
    took = row.get("to") in _SERVES and row.get("from") not in (*_SERVES, "starting", "unknown")
    return took or (row.get("from") == "primary" and row.get("to") in ("lost", "solo", "ending"))


def _cut(known: Known, begin_s: float, end_s: float) -> Timeline:
    def within(at_s: float) -> bool:
        return begin_s <= at_s <= end_s

    silences = [one for one in map(_silence, known.rows) if one and one.end_s >= begin_s]
    return Timeline(
        vm=known.vm,
        host=known.host,
        peer=known.peer,
        begin_s=begin_s,
        end_s=end_s,
        rows=[row for row in known.rows if within(row["at_s"])],
        samples=[one for one in known.samples if within(one["at_s"])],
        sentences=[one for one in known.sentences if within(one[0])],
        missing=known.missing,
        here=_bars([(row["at_s"], row.get("to", "?")) for row in known.rows], begin_s, end_s),
        there=_bars([(one["at_s"], one["peer"]) for one in known.samples], begin_s, end_s),
        silences=[one for one in silences if one.begin_s <= end_s],
    )


def _silence(row: dict[str, Any]) -> Silence | None:
    length_ms = row.get("silence_ms")
    if not length_ms:
        return None
    return Silence(row["at_s"] - length_ms / 1000, row["at_s"], str(row.get("why", "")))


def _bars(changes: Sequence[tuple[float, str]], begin_s: float, end_s: float) -> list[Bar]:
    """From each change to the next one, cut to what is shown; equal neighbours are one."""
    found: list[Bar] = []
    ends = [*(at_s for at_s, _ in changes[1:]), end_s][: len(changes)]
    for (at_s, state), until_s in zip(changes, ends, strict=True):
        bar = Bar(state, max(at_s, begin_s), min(until_s, end_s))
        if bar.end_s <= bar.begin_s:
            continue
        if found and found[-1].state == state:
            bar = Bar(state, found.pop().begin_s, bar.end_s)
        found.append(bar)
    return found
