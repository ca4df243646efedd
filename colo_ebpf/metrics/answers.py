# SPDX-License-Identifier: GPL-2.0-only
"""What became of asking a daemon for its status, and what a monitor wants to know of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Status = dict[str, Any]
_SERVES_IN = ("solo", "pairing", "primary")
_LETS_OUT = ("primary", "solo")


@dataclass(frozen=True, slots=True)
class Target:
    """One VM's daemon on this host, of its configuration file."""

    vm: str
    host: str
    socket: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` None: it did not answer, and `error` says why. The same for the arbiter."""

    target: Target
    status: Status | None
    error: str = ""
    took_s: float = 0.0
    arbiter_error: str | None = None  # None: not asked yet; "": it answered
    arbiter_s: float = 0.0


def legible(text: object) -> str:
    """As text that can be sent: names of files may hold bytes that are none."""
    return str(text).encode(errors="replace").decode()


def serves(status: Status) -> bool:
    """The VM here lives, and what it says to clients leaves (of a pair: what both agree on)."""
    vm, off = status["vm_process"], status["guest"]["powered_off"]
    lives = vm is not None and vm["alive"] and not off
    return bool(lives and status["state"] in _SERVES_IN and status["mode"] in _LETS_OUT)


def protected(status: Status) -> bool:
    """A pair that would survive one failure now."""
    return bool(status["protected"])
