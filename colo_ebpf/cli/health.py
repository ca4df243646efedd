# SPDX-License-Identifier: GPL-2.0-only
"""How well a VM is, judged by what its daemon says (`report.status`). Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from colo_ebpf.cli.text import paused

SERVING = frozenset({"solo", "pairing", "primary"})  # the VM of that host answers clients


class Level(enum.IntEnum):
    """As monitors have it (Nagios and its like); also the exit codes of `colo-ebpf check`."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why` is one line."""

    level: Level
    vm: str
    why: str

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"level": self.level.name, "vm": self.vm, "why": self.why}

    def text(self) -> str:
        """The line that monitors take."""
        return f"{self.level.name} - {self.vm}: {self.why}" if self.vm else f"UNKNOWN - {self.why}"


def one_line(text: str) -> str:
    """Nothing in it moves a terminal's cursor, whoever said it."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def serves_on(s: dict[str, Any]) -> str:
    """The host whose VM answers clients, as far as is known here ("" if none is known to)."""
    peer = s["peer"]
    if s["state"] in SERVING:
        return str(s["host"])
    heard = peer["link_heard"] or peer["management_heard"]
    return str(peer["name"]) if heard and peer["state"] in SERVING else ""


def replica(s: dict[str, Any]) -> str:
    """Where the other VM is ("" if there is none)."""
    there = {"primary": s["peer"]["name"], "secondary": s["host"]}
    made = {"pairing": s["peer"]["name"], "joining": s["host"]}
    if s["state"] in made:
        return f"made on {made[s['state']]}"
    return str(there.get(s["state"], ""))


def why(s: dict[str, Any]) -> str:
    """Why it is not protected ("" if it is)."""
    if s["protected"]:
        return ""
    if s["paused"]:
        return f"{paused(s)}: `colo-ebpf resume` ends this"
    said = s["sentence"]
    if s["lacks"]:
        said = f"{s['host']} lacks {s['lacks']}"
    elif s["state"] in ("primary", "secondary") and s["peer"]["lacks"]:
        said = f"{s['peer']['name']} lacks {s['peer']['lacks']}"
    elif s["state"] in ("primary", "secondary"):
        said = s["unprotected_why"] or said
    return one_line(said + _progress(s["progress"]))


def _progress(progress: dict[str, Any] | None) -> str:
    if not progress or not progress["total"]:
        return ""
    return f" ({progress['what']}: {100 * progress['done'] // progress['total']} %)"


def judge(s: dict[str, Any]) -> Verdict:
    """OK: it survives a failure. WARNING: it serves, or is off on purpose. CRITICAL: neither."""
    vm, serves = str(s["vm"]), serves_on(s)
    if s["protected"]:
        pair = f"{s['host']} and {s['peer']['name']}"
        return Verdict(Level.OK, vm, f"protected, {s['role']} on {s['host']}, by {pair}")
    if serves:
        return Verdict(Level.WARNING, vm, f"serves on {serves}, NOT protected: {why(s)}")
    if s["state"] == "off":
        return Verdict(Level.WARNING, vm, why(s))
    return Verdict(Level.CRITICAL, vm, f"no host is known to serve it: {why(s)}")
