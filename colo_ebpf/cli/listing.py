# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf list`: a line for each VM of this host. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from colo_ebpf.cli import health
from colo_ebpf.render import table

_MINUTE_MS = 60_000
_HEAD = (
    "VM",
    "SERVES ON",
    "PROTECTED",
    "STATE",
    "SINCE",
    "REPLICA",
    "CKPT/MIN",
    "PAUSE P99",
    "LINK",
    "DISK",
    "WHY NOT PROTECTED",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One VM. None: not known here. `why`: why it is not protected, in one line."""

    vm: str
    file: str
    serves_on: str | None = None
    protected: bool = False
    state: str | None = None
    since_ms: float | None = None
    replica: str | None = None
    checkpoints_a_minute: float | None = None
    pause_p99_ms: float | None = None
    link: str | None = None
    disk: str | None = None
    why: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def row(vm: str, file: str, status: dict[str, Any] | None, error: str) -> Row:
    """Of what was asked; `error` says why there is no status."""
    if status is None:
        return Row(vm, file, why=health.one_line(error))
    points = status["checkpoints"]
    taken = status["state"] == "primary"
    return Row(
        vm,
        file,
        serves_on=health.serves_on(status) or None,
        protected=status["protected"],
        state=status["state"],
        since_ms=status["since_ms"],
        replica=health.replica(status) or None,
        checkpoints_a_minute=a_minute([one["ago_ms"] for one in points["recent"]], taken),
        pause_p99_ms=p99([one["pause_ms"] for one in points["recent"]]) if taken else None,
        link=_link(status),
        disk=health.one_line(status["disk"]),
        why=health.why(status),
    )


def a_minute(agos_ms: list[float], taken: bool, most: int = 64) -> float | None:
    """Checkpoints of the last minute; of so many that the daemon does not know all, their pace."""
    if not taken:
        return None
    late = [ago_ms for ago_ms in agos_ms if ago_ms <= _MINUTE_MS]
    if len(late) < most:
        return float(len(late))
    return len(late) * _MINUTE_MS / max(1.0, *late)


def p99(values: list[float]) -> float | None:
    """The one that 99 % are not above."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1] if values else None


def _link(s: dict[str, Any]) -> str:
    """What comes from the other host on the link."""
    peer = s["peer"]
    if not peer["link_heard"]:
        return f"silent for {lasted(peer['link_age_ms'])}"
    if s["state"] in ("primary", "secondary") and not peer["plane_heard"]:
        return "no frames"
    return "ok"


def lasted(ms: float | None) -> str:
    """In two units at most: 4d 3h, 12m 5s, 8s."""
    if ms is None:
        return "-"
    seconds = int(ms / 1000)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if (count := seconds // length) or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
        seconds %= length
    return " ".join(parts[:2])


def readable(rows: list[Row], width: int | None = None) -> str:
    """The table; `width`: lines are cut to so many columns."""
    lines = table([_HEAD, *(_cells(one) for one in rows)]).splitlines()
    return "\n".join(line[:width].rstrip() for line in lines)


def _cells(one: Row) -> tuple[str, ...]:
    rate, pause = one.checkpoints_a_minute, one.pause_p99_ms
    return (
        one.vm,
        one.serves_on or "?",
        "yes" if one.protected else "NO",
        one.state or "?",
        lasted(one.since_ms),
        one.replica or "-",
        "-" if rate is None else f"{rate:.0f}",
        "-" if pause is None else f"{pause:.1f} ms",
        one.link or "-",
        one.disk or "-",
        one.why,
    )
