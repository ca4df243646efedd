# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf history`: each change of state that this host has seen, from the file it is kept in.

No daemon is asked: what happened is most wanted when none runs.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colo_ebpf.errors import ControlError
from colo_ebpf.render import table

FILE = "history.jsonl"
_LOOK_EVERY_S = 0.5


def rows(state_dir: Path) -> list[dict[str, Any]]:
    """The oldest first. ControlError if they cannot be read."""
    return _parsed(_read(state_dir / FILE))


def follow(state_dir: Path) -> Iterator[dict[str, Any]]:
    """What is there, and what is added, without end."""
    path, seen, told = state_dir / FILE, b"", 0
    while True:
        data = _read(path)
        if not data.startswith(seen[:told]):  # its older half is gone
            told = _place_after(data, seen)
        end = data.rfind(b"\n") + 1
        yield from _parsed(data[told:end])
        seen, told = data, max(end, told)
        time.sleep(_LOOK_EVERY_S)


def _place_after(data: bytes, seen: bytes) -> int:
    """Where what was not seen begins, in a file that was cut."""
    last = seen.rstrip(b"\n").rpartition(b"\n")[2]
    at = data.rfind(last) if last else -1
    return at + len(last) + 1 if at >= 0 else 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as e:
        raise ControlError(f"{path}: {e.strerror}") from e


def _parsed(data: bytes) -> list[dict[str, Any]]:
    """What a power cut left of a line is no row."""
    found = []
    for line in data.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and "at_s" in row:
            found.append(row)
    return found


def readable(found: list[dict[str, Any]]) -> str:
    """For people, with local times."""
    if not found:
        return "nothing has changed here yet"
    head = ("WHEN", "GENERATION", "FROM", "TO", "BY", "SILENT", "WHY")
    return table([head, *map(_cells, found)])


def readable_line(row: dict[str, Any]) -> str:
    """One row, without knowing the others."""
    when, generation, old, new, by, silent, why = _cells(row)
    quiet = f", silent {silent}" if silent != "-" else ""
    return f"{when}  generation {generation}: {old} to {new} by {by}{quiet}: {why}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    at = datetime.datetime.fromtimestamp(float(row["at_s"])).astimezone()
    silence_ms = row.get("silence_ms")
    return (
        f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d}",
        str(row.get("generation", "?")),
        str(row.get("from", "?")),
        str(row.get("to", "?")),
        str(row.get("by", "?")),
        "-" if silence_ms is None else f"{silence_ms:.0f} ms",
        str(row.get("why", "")),
    )
