# SPDX-License-Identifier: GPL-2.0-only
"""Planned operation on a lab: one connection, every reply right, while the hosts change places."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.lab import faults
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.workload import LEDGER, until_serving
from tests.lab import Entries, cli, protected, run_cli


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
    said = await asyncio.to_thread(_cli, lab, "a", "history", "--sentences")
    assert "b serves now" in [row["sentence"] for row in said]
    rows = await asyncio.to_thread(_cli, lab, "b", "history")
    served = [row for row in rows if row["to"] == "solo"]
    assert [row["by"] for row in served] == ["operator", "operator"]
    assert all(row["silence_ms"] > 0 and row["generation"] > 1 for row in served)
    page = await asyncio.to_thread(_report, lab, "b")
    assert "<td>claimed to solo</td>" in page
    assert "no host served for " in page
    await _drained_and_back(lab)


def _report(lab: Lab, host: str) -> str:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "page.html"
        said = _cli(lab, host, "report", "--failover", "--output", str(file))
        assert said["missing"] == ""
        assert said["samples"] > 0
        return file.read_text()


def _host_wide(lab: Lab, host: str, *words: str) -> Any:
    """A command for all VMs of a host, which has one."""
    with tempfile.TemporaryDirectory() as directory:
        vms = Path(directory) / "vms"
        vms.mkdir()
        (vms / "web.toml").symlink_to(lab.places[host].config)
        done = run_cli(lab, host, *words, "--json", "--directory", directory)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def _drained_and_back(lab: Lab) -> None:
    """b serves; it is emptied, goes away and comes back, and the VM stays where it is."""
    await asyncio.to_thread(lab.wait_protected)
    (moved, paused) = await asyncio.to_thread(_host_wide, lab, "b", "drain", "--yes")
    assert moved["sentence"].startswith("a serves now; nothing left for ")
    assert "protection is PAUSED: drain of b on both hosts" in paused["sentence"]
    status = lab.ask("a")
    assert status is not None
    assert status["pause"]["why"] == "drain of b"
    (resumed,) = await asyncio.to_thread(_host_wide, lab, "b", "drain", "--undo")
    assert resumed["sentence"] == "protection is not paused on both hosts"
    await asyncio.to_thread(lab.wait_protected)


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
