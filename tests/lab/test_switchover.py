# SPDX-License-Identifier: GPL-2.0-only
"""Planned operation on a lab: one connection, every reply right, while the hosts change places."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from colo_ebpf.lab import faults
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.workload import LEDGER, PATIENCE_S, until_serving
from tests.capabilities import require
from tests.lab import clean


def _run(lab: Lab, host: str, *words: str) -> subprocess.CompletedProcess[str]:
    place = lab.places[host]
    enter = ["nsenter", f"--net=/run/netns/{place.namespace}", sys.executable]
    return subprocess.run(
        [*enter, "-m", "colo_ebpf.cli.main", *words, "--json", "--config", str(place.config)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def _cli(lab: Lab, host: str, *words: str) -> Any:
    done = _run(lab, host, *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class _Ledger:
    """Entries appended one after the other over one connection, without a break."""

    def __init__(self, lines: Lines) -> None:
        self.lines, self.number = lines, 0
        self.stop = asyncio.Event()

    async def run(self) -> None:
        while not self.stop.is_set():
            await self.append()

    async def append(self) -> None:
        self.number += 1
        async with asyncio.timeout(PATIENCE_S):
            reply = await self.lines.ask(f"ADD {self.number} entry")
        assert reply.startswith(f"OK {self.number} ")


async def _scenario(lab: Lab) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    ledger = _Ledger(Lines(await client.connect(LEDGER)))
    appending = asyncio.create_task(ledger.run())
    for asked, winner in (("a", "b"), ("b", "a"), ("b", "b")):
        before = ledger.number
        answer = await asyncio.to_thread(_cli, lab, asked, "switchover", "--yes")
        assert answer["sentence"] == f"{winner} serves now"
        assert answer["outage_ms"] > 0
        print(f"asked on {asked}: nothing left for {answer['outage_ms']:.1f} ms")
        await asyncio.to_thread(lab.wait_protected)
        status = lab.ask(winner)
        assert status is not None
        assert status["role"] == "primary"
        assert ledger.number > before
    ledger.stop.set()
    await appending
    ledger.lines.close()
    history = await asyncio.to_thread(_cli, lab, "a", "history")
    assert "b serves now" in [row["sentence"] for row in history]


async def _appended(ledger: _Ledger, count: int) -> None:
    for _ in range(count):
        await ledger.append()


def _refused(lab: Lab, host: str, *words: str) -> str:
    done = _run(lab, host, *words)
    assert done.returncode == 2
    return done.stderr


def _sentence(lab: Lab, host: str) -> str:
    status = lab.ask(host)
    return "" if status is None else str(status["sentence"])


async def _paused_and_forced(lab: Lab) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    ledger = _Ledger(Lines(await client.connect(LEDGER)))
    await _appended(ledger, 5)
    generation = str(lab.ask("b")["record"]["generation"])
    force = ("failover", "--force", "--yes", "--generation", generation)
    assert "a is heard and its VM is well" in _refused(lab, "b", *force)
    assert "say --yes" in _refused(lab, "b", "switchover")
    assert _cli(lab, "a", "pause")["peer_agrees"]
    assert lab.ask("b")["paused"]
    await asyncio.to_thread(faults.kill, lab, "a", "host")
    held = "paused by the operator: not taking over although a is not heard on any path"
    await asyncio.to_thread(lab.wait, lambda: _sentence(lab, "b") == held, "b takes over")
    assert "no switchover: a is not heard" in _refused(lab, "b", "switchover", "--yes")
    stale = ("failover", "--force", "--yes", "--generation", "1")
    assert "the record is at generation" in _refused(lab, "b", *stale)
    answer = await asyncio.to_thread(_cli, lab, "b", *force)
    assert answer["sentence"] == "b serves now"
    await _appended(ledger, 5)
    await asyncio.to_thread(lab.heal)
    alone = "alone, unprotected: paused by the operator"
    await asyncio.to_thread(lab.wait, lambda: _sentence(lab, "b") == alone, "b does not say so")
    _cli(lab, "b", "resume")
    await asyncio.to_thread(lab.wait_protected)
    await _appended(ledger, 5)
    ledger.lines.close()


@pytest.mark.parametrize("scenario", [_scenario, _paused_and_forced])
def test_a_connection_lives_through(scenario: Callable[[Lab], Coroutine[None, None, None]]) -> None:
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotests"))
    try:
        lab.up(choose(Wanted()))
        asyncio.run(scenario(lab))
    finally:
        lab.down()
