# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf drain`: let the VMs that serve here serve on their other hosts, and stay there.

Each one that serves here changes places with its replica; then all are paused, so that nothing
moves while this host is away. `--undo` ends the pauses that this made. What is to be done is
decided before anything is (`plan`, pure): one VM that cannot leave keeps all of them here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_ebpf.cli import planned, vms
from colo_ebpf.config.reading import load_config
from colo_ebpf.control.admin import control_socket
from colo_ebpf.errors import ConfigError, ControlError
from colo_ebpf.render import table

_SERVES = ("primary", "solo")
_OFF = "off"


@dataclass(frozen=True, slots=True)
class Plan:
    """The names of the VMs, in order."""

    move: tuple[str, ...] = ()
    pause: tuple[str, ...] = ()  # those that are moved, too
    resume: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one VM."""

    vm: str
    sentence: str

    def plain(self) -> dict[str, str]:
        """For JSON."""
        return {"vm": self.vm, "sentence": self.sentence}


def why(host: str) -> str:
    """What a pause of this says, and how it is told from an operator's own."""
    return f"drain of {host}"


def plan(asked: Sequence[vms.Asked]) -> Plan:
    """ControlError with each VM that stands in the way."""
    refused = list(filter(None, map(_in_the_way, asked)))
    if refused:
        raise ControlError("nothing was moved: " + "; ".join(refused))
    statuses = [(one.name, one.status) for one in asked if one.status is not None]
    return Plan(
        move=tuple(name for name, s in statuses if s["role"] in _SERVES),
        pause=tuple(name for name, s in statuses if s["state"] != _OFF and not s["paused"]),
    )


def _in_the_way(one: vms.Asked) -> str:
    s = one.status
    if s is None:
        return f"{one.name}: what it does is not known: {one.error}"
    if s["role"] not in _SERVES or s["protected"]:
        return ""
    if s["state"] == "primary" and s["paused"]:  # of a pair that is whole but for that
        return ""
    lacks = s["unprotected_why"] or s["sentence"]
    return f"{one.name} serves here and is not protected: {lacks}"


def undo(asked: Sequence[vms.Asked]) -> Plan:
    """Of those whose daemon answers; an operator's own pauses stay."""
    statuses = [(one.name, one.status) for one in asked if one.status is not None]
    ours = [name for name, s in statuses if s["paused"] and s["pause"]["why"] == why(s["host"])]
    return Plan(resume=tuple(ours))


def run(args: argparse.Namespace, confirm: Callable[[argparse.Namespace, str], None]) -> list[Done]:
    """Carry it out. ControlError names the first VM that did not go."""
    asked = vms.ask_all(vms.files(args.directory))
    if not asked:
        raise ConfigError(f"no VM is configured in {args.directory}")
    to_do = undo(asked) if args.undo else plan(asked)
    files = {one.name: one.file for one in asked}
    if not args.undo:
        confirm(args, _question(to_do))
    done = [_move(name, files[name], args) for name in to_do.move]
    done += [_pause(name, files[name], args) for name in to_do.pause]
    return done + [_resume(name, files[name], args) for name in to_do.resume]


def _question(to_do: Plan) -> str:
    moved = ", ".join(to_do.move) or "none serves here"
    return (
        f"Let VMs serve on their other hosts ({moved}), unprotected until `colo-ebpf drain --undo`?"
    )


def _named(name: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except ControlError as e:
        raise type(e)(f"{name}: {e}; `colo-ebpf drain --undo` protects all of them again") from e


def _socket(file: Path) -> Path:
    return vms.socket_of(load_config(file))


def _move(name: str, file: Path, args: argparse.Namespace) -> Done:
    if not args.json:
        print(f"{name}:", file=sys.stderr, flush=True)
    socket = _socket(file)

    def move() -> Any:
        control_socket.ask(socket, "may-switch-over")
        return planned.carry_out(socket, "switchover", args.json, args.timeout)

    return Done(name, planned.readable(_named(name, move)))


def _pause(name: str, file: Path, args: argparse.Namespace) -> Done:
    socket = _socket(file)

    def pause() -> Any:
        host = load_config(file).host.name
        return planned.pause(socket, "pause", args.timeout, until_s=0, why=why(host))

    return Done(name, planned.readable_pause(_named(name, pause)))


def _resume(name: str, file: Path, args: argparse.Namespace) -> Done:
    socket = _socket(file)
    return Done(name, planned.readable_pause(planned.pause(socket, "resume", args.timeout)))


def readable(done: Sequence[dict[str, str]]) -> str:
    """For people."""
    return table([(one["vm"], one["sentence"]) for one in done]) or "nothing is to be done"
