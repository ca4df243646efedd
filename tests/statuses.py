# SPDX-License-Identifier: GPL-2.0-only
"""Statuses as the daemon's own code makes them, of the simulation's hosts; and daemons that say
them, or something else, or nothing."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from colo_ebpf.control.admin import status as daemon_status
from colo_ebpf.control.checkpoint.primary import Cause
from colo_ebpf.datapath.bpf.abi import LiveWord
from colo_ebpf.model import Counter
from tests.sim.host import Host
from tests.sim.test_pair import _until_protected
from tests.sim.world import MS, World

_LIMIT_MS = 20_000
_COUNTERS = (
    Counter("mirror", "pass", "solo", 7, 700),
    Counter("compare", "hold", "new", 3, 4096),
)


def of_host(host: Host) -> dict[str, Any]:
    """As it would come over the control socket."""
    core, plane = host.core, host.plane
    assert core is not None
    plane_facts = {
        "turn": plane.turn,
        "held": plane.held,
        "mode": plane.mode,
        "wiring": SimpleNamespace(by=SimpleNamespace(value="tcx")),
        "counters": lambda: _COUNTERS,
        "live": lambda: {word.name.lower(): 0 for word in LiveWord},
        "link_heard_ns": plane.link_heard_ns,
    }
    daemon: Any = SimpleNamespace(
        core=core,
        plane=SimpleNamespace(**plane_facts),
        machine=SimpleNamespace(accel="tcg"),
        accel_why="said so",
        steps=SimpleNamespace(progress=None),
        link=None,
        keys=SimpleNamespace(status=lambda: {"changed": True}),
    )
    if core.vm is not None:  # a process of which the simulation knows less
        core.vm.__dict__.setdefault("pid", 1)
        core.vm.__dict__.setdefault("overlay_use", lambda: ())
    return dict(json.loads(json.dumps(daemon_status.status(daemon, host.now_ns))))


@cache
def _of_a_pair() -> dict[str, dict[str, Any]]:
    world = World(5)
    for host in [Host(world, name) for name in "ab"]:
        host.start_daemon()
    assert _until_protected(world, _LIMIT_MS)
    core = world.hosts["a"].core
    assert core is not None
    for _ in range(200):
        core.checkpoints.primary.ask(Cause.OPERATOR, world.hosts["a"].now_ns)
        world.run(10 * MS, lambda: None)
    return {name: of_host(host) for name, host in world.hosts.items()}


def of_pair(host: str = "a", **changes: Any) -> dict[str, Any]:
    """Of one host of a protected pair; a is the primary. `changes`: of its top level."""
    return copy.deepcopy(_of_a_pair()[host]) | changes


@asynccontextmanager
async def daemon(path: Path, *lines: bytes) -> AsyncIterator[list[bytes]]:
    """Answers each request with all of these lines; yields what it was asked."""
    asked: list[bytes] = []
    open_ones: set[asyncio.StreamWriter] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        while line := await reader.readline():
            asked.append(line)
            writer.write(b"".join(lines))
        writer.close()

    server = await asyncio.start_unix_server(answer, str(path))
    try:
        yield asked
    finally:
        server.close()
        for writer in open_ones:
            writer.close()


def said(status: Any) -> bytes:
    """A daemon's line."""
    return json.dumps({"ok": status}).encode() + b"\n"
