# SPDX-License-Identifier: GPL-2.0-only
"""Planned operation: what is asked of the daemon, and what became of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from colo_ebpf.control import ctl
from colo_ebpf.errors import ControlError

_LOOK_EVERY_S = 0.1


def carry_out(socket: Path, command: str, quiet: bool, **words: int) -> dict[str, Any]:
    """Ask for it and wait for its answer. ControlError if it was not done."""
    token = ctl.ask(socket, command, **words)["token"]
    told = ""
    while True:
        now = ctl.ask(socket, "planned")
        answer = now["answer"]
        if answer is not None and answer["token"] == token:
            break
        if now["token"] != token:
            raise ControlError(
                "the daemon was started anew and forgot what was asked of it; see "
                "`colo-ebpf history` and `colo-ebpf status`"
            )
        if not quiet and now["sentence"] != told:
            told = now["sentence"]
            print(told, file=sys.stderr, flush=True)
        time.sleep(_LOOK_EVERY_S)
    if not answer["done"]:
        raise ControlError(answer["sentence"])
    return dict(answer)


def pause(socket: Path, command: str) -> dict[str, Any]:
    """Pause or resume, and wait for the other host to say that it knows, if it is heard."""
    while True:
        now = ctl.ask(socket, command)
        if now["peer_agrees"] or not now["peer_heard"]:
            return dict(now)
        time.sleep(_LOOK_EVERY_S)


def readable_pause(now: dict[str, Any]) -> str:
    """Whether protection is paused, for people."""
    what = "protection is PAUSED" if now["paused"] else "protection is not paused"
    if now["peer_agrees"]:
        return f"{what} on both hosts"
    return f"{what} on this host; {now['peer']} is not heard and learns of it when it is"


def readable(answer: dict[str, Any]) -> str:
    """What became of it, for people."""
    outage_ms = answer["outage_ms"]
    silent = f"; nothing left for {outage_ms:.0f} ms" if outage_ms else ""
    return f"{answer['sentence']}{silent}"
