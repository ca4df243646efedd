# SPDX-License-Identifier: GPL-2.0-only
"""What is asked of the daemon and takes a while, and what became of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colo_ebpf.control.admin import control_socket
from colo_ebpf.errors import ControlError, NotInTimeError

_LOOK_EVERY_S = 0.1


def _looks(timeout_s: float) -> Iterator[None]:
    """One after the other until the time is over; 0: without end."""
    deadline_s = time.monotonic() + timeout_s
    yield
    while not timeout_s or time.monotonic() < deadline_s:
        time.sleep(_LOOK_EVERY_S)
        yield


def carry_out(
    socket: Path, command: str, quiet: bool, timeout_s: float, **words: int
) -> dict[str, Any]:
    """Ask for it and wait for its answer. ControlError if it was not done."""
    token, told = control_socket.ask(socket, command, **words)["token"], ""
    for _ in _looks(timeout_s):
        now = control_socket.ask(socket, "planned")
        answer = now["answer"]
        if answer is not None and answer["token"] == token:
            if not answer["done"]:
                raise ControlError(answer["sentence"])
            return dict(answer)
        if now["token"] != token:
            raise NotInTimeError(
                "the daemon was started anew and forgot what was asked of it; see "
                "`colo-ebpf history` and `colo-ebpf status`"
            )
        if not quiet and now["sentence"] != told:
            told = now["sentence"]
            print(told, file=sys.stderr, flush=True)
    raise NotInTimeError(f"not done within {timeout_s:g} s; it goes on: {now['sentence']}")


def checkpoint(socket: Path, timeout_s: float) -> dict[str, Any]:
    """Ask for a checkpoint and wait until one that began no earlier is loaded.

    Raises ControlError if the pair ended before, NotInTimeError after `timeout_s`.
    """
    asked_ns = control_socket.ask(socket, "checkpoint")["at_ns"]
    for _ in _looks(timeout_s):
        news = control_socket.ask(socket, "checkpoint-news")
        if not news["can"]:
            raise ControlError(f"the pair ended before its checkpoint: {news['sentence']}")
        last = news["last"]
        if not news["pending"] and last is not None and last["resumed_ns"] >= asked_ns:
            return dict(last)
    raise NotInTimeError(f"no checkpoint was loaded within {timeout_s:g} s: {news['sentence']}")


def readable_checkpoint(one: dict[str, Any]) -> str:
    """For people."""
    return (
        f"epoch {one['epoch']} is loaded: the VM stood for {one['pause_ms']:.1f} ms, "
        f"{one['reaction_ms']:.1f} ms after its cause, {one['cause']}"
    )


def pause(socket: Path, command: str, timeout_s: float, **words: int | str) -> dict[str, Any]:
    """Pause or resume, and wait for the other host to say that it knows, if it is heard.

    Raises NotInTimeError after `timeout_s`.
    """
    for _ in _looks(timeout_s):
        now = control_socket.ask(socket, command, None, **words)
        if now["peer_agrees"] or not now["peer_heard"]:
            return dict(now)
    raise NotInTimeError(f"{now['peer']} does not say within {timeout_s:g} s that it knows of it")


def readable_pause(now: dict[str, Any]) -> str:
    """Whether protection is paused, for people."""
    what = now["sentence"].replace("paused", "PAUSED")
    what = what if now["paused"] else "protection is not paused"
    if now["peer_agrees"]:
        return f"{what} on both hosts"
    return f"{what} on this host; {now['peer']} is not heard and learns of it when it is"


def readable(answer: dict[str, Any]) -> str:
    """What became of it, for people."""
    outage_ms = answer["outage_ms"]
    silent = f"; nothing left for {outage_ms:.0f} ms" if outage_ms else ""
    return f"{answer['sentence']}{silent}"
