# SPDX-License-Identifier: GPL-2.0-only
"""Planned operation on a lab: one connection, every reply right, while the hosts change places."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from colo_ebpf.lab import faults
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.workload import LEDGER, until_serving
from tests.lab import Entries, cli, protected


def _cli(lab: Lab, host: str, *words: str) -> Any:
    done = cli(lab, host, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def _until(stop: asyncio.Event, ledger: Entries) -> None:
    """Without a break."""
    while not stop.is_set():
        await ledger.append()


async def _scenario(lab: Lab) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    ledger, stop = Entries(Lines(await client.connect(LEDGER))), asyncio.Event()
    appending = asyncio.create_task(_until(stop, ledger))
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
    stop.set()
    await appending
    ledger.lines.close()
    history = await asyncio.to_thread(_cli, lab, "a", "history")
    assert "b serves now" in [row["sentence"] for row in history]


def _refused(lab: Lab, host: str, *words: str) -> str:
    done = cli(lab, host, *words, "--json")
    assert done.returncode == 2
    return done.stderr


def _sentence(lab: Lab, host: str) -> str:
    status = lab.ask(host)
    return "" if status is None else str(status["sentence"])


async def _paused_and_forced(lab: Lab) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    ledger = Entries(Lines(await client.connect(LEDGER)))
    await ledger.append(5)
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
    await ledger.append(5)
    await asyncio.to_thread(lab.heal)
    alone = "alone, unprotected: paused by the operator"
    await asyncio.to_thread(lab.wait, lambda: _sentence(lab, "b") == alone, "b does not say so")
    _cli(lab, "b", "resume")
    await asyncio.to_thread(lab.wait_protected)
    await ledger.append(5)
    ledger.lines.close()


@pytest.mark.parametrize("scenario", [_scenario, _paused_and_forced])
def test_a_connection_lives_through(scenario: Callable[[Lab], Coroutine[None, None, None]]) -> None:
    with protected("colotests") as lab:
        asyncio.run(scenario(lab))
