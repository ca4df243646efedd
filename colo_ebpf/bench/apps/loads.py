# SPDX-License-Identifier: GPL-2.0-only
"""The loads, and what is expected of them. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from colo_ebpf.bench.apps import clients
from colo_ebpf.bench.apps.clients import Run
from colo_ebpf.errors import BenchError


class Lockstep(enum.Enum):
    """Whether lane lockstep has a figure of a load; if not, why: the note of its row."""

    MEASURED = ""
    KEYS = "none: two VMs have two keys for a session"
    LENGTHS = "none: answers may differ in length, and a client could wait for ever"
    LEFT_OUT = "left out to keep a run short"


@dataclass(frozen=True, slots=True)
class Load:
    """`same`: two VMs that do the same work need not differ, but for a date in an answer;
    `differs`: they do so often that it matters how checkpoints come about."""

    key: str  # for the command line
    name: str  # of the measure
    run: Run
    same: bool = False
    differs: bool = False
    unit: str = "/s"
    dated: bool = False  # its answers name the second
    least_s: float = 1.0  # its clients connect within the time, too
    lockstep: Lockstep = Lockstep.LEFT_OUT


_SETTLES_S = 4.0  # how checkpoints come about is found out in the first of them


def _plural(count: int) -> str:
    return f"{count} client{'s' if count > 1 else ''}"


def _in_order(count: int, *, same: bool) -> Lockstep:
    """The order in which a VM serves several clients is in its answers if they are not the `same`
    in all VMs: a balance of one digit or of two."""
    return Lockstep.MEASURED if same or count == 1 else Lockstep.LENGTHS


def _redis() -> Iterator[Load]:
    for command in ("get", "set", "incr"):
        for count in (1, 50):
            yield Load(
                f"{command}-{count}",
                f"redis {command.upper()}, {_plural(count)}",
                clients.redis(command, count),
                same=command != "incr",
                differs=command == "incr" and count > 1,
                least_s=_SETTLES_S if command == "incr" and count > 1 else 1.0,
                lockstep=_in_order(count, same=command != "incr"),
            )
    name = f"redis GET, {_plural(50)}, pipelined"
    yield Load("get-50-p16", name, clients.redis("get", 50, pipeline=16), same=True)


def _web() -> Iterator[Load]:
    for scheme in ("http", "https"):
        for keep_alive in (True, False):
            for count in (1, 20):
                how = "keep-alive" if keep_alive else "a connection each"
                differs = scheme == "https" and not keep_alive and count > 1
                yield Load(
                    f"{scheme}-{'keepalive' if keep_alive else 'each'}-{count}",
                    f"{scheme.upper()}, {how}, {_plural(count)}",
                    clients.web(scheme, count, keep_alive),
                    same=keep_alive or scheme == "http",
                    differs=differs,
                    dated=True,
                    least_s=_SETTLES_S if differs else 1.0,
                    lockstep=_page_in_lockstep(scheme, keep_alive, count),
                )


def _page_in_lockstep(scheme: str, keep_alive: bool, count: int) -> Lockstep:
    if scheme == "https":
        return Lockstep.KEYS
    return Lockstep.MEASURED if keep_alive or count == 1 else Lockstep.LEFT_OUT


def _database() -> Iterator[Load]:
    for key, kind, select in (("pgbench-s", "pgbench -S", True), ("tpcb", "TPC-B", False)):
        for count in (1, 8):
            differs = not select and count > 1
            yield Load(
                f"{key}-{count}",
                f"{kind}, {_plural(count)}",
                clients.database(count, select),
                same=select,
                differs=differs,
                least_s=_SETTLES_S if differs else 3.0 if count > 1 else 2.0,
                lockstep=_in_order(count, same=select),
            )


def _files() -> Iterator[Load]:
    for way, run in (("down", clients.download()), ("up", clients.upload())):
        yield Load(
            f"file-{way}",
            f"20 MB file {way}",
            run,
            same=True,
            unit="MB/s",
            dated=True,
            lockstep=Lockstep.MEASURED,
        )


def _dice() -> Iterator[Load]:
    for count, lockstep in ((1, Lockstep.MEASURED), (50, Lockstep.LEFT_OUT)):
        name = f"dice, {_plural(count)}"
        run = clients.dice(count)
        yield Load(f"dice-{count}", name, run, differs=True, least_s=_SETTLES_S, lockstep=lockstep)


def _all() -> Iterator[Load]:
    yield from _redis()
    yield from _web()
    yield from _files()
    yield from _database()
    yield Load("ssh-login", "ssh login", clients.login, lockstep=Lockstep.KEYS)
    yield Load(
        "ssh-echo", "typed character's echo over ssh", clients.typing, lockstep=Lockstep.KEYS
    )
    yield from _dice()


# Those in which the VMs differ come last: for a second or two the daemon still takes checkpoints
# as they asked for, and that would be the next load's figure.
LOADS: tuple[Load, ...] = tuple(sorted(_all(), key=lambda load: load.differs))


def chosen(keys: str) -> tuple[Load, ...]:
    """By keys with commas between them; empty: all. BenchError for one that is none."""
    wanted = [key for key in keys.split(",") if key]
    known = {load.key: load for load in LOADS}
    if unknown := [key for key in wanted if key not in known]:
        raise BenchError(f"{unknown[0]}: not one of {', '.join(known)}")
    return tuple(known[key] for key in wanted) or LOADS
