# SPDX-License-Identifier: GPL-2.0-only
"""Planned operation on a lab: one connection, every reply right, while the hosts change places."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.workload import LEDGER, PATIENCE_S, until_serving
from tests.capabilities import require
from tests.lab import clean


def _cli(lab: Lab, host: str, *words: str) -> Any:
    place = lab.places[host]
    enter = ["nsenter", f"--net=/run/netns/{place.namespace}", sys.executable]
    done = subprocess.run(
        [*enter, "-m", "colo_ebpf.cli.main", *words, "--json", "--config", str(place.config)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class _Ledger:
    """Entries appended one after the other over one connection, without a break."""

    def __init__(self, lines: Lines) -> None:
        self.lines, self.number = lines, 0
        self.stop = asyncio.Event()

    async def run(self) -> None:
        while not self.stop.is_set():
            self.number += 1
            async with asyncio.timeout(PATIENCE_S):
                reply = await self.lines.ask(f"ADD {self.number} entry")
            assert reply.startswith(f"OK {self.number} ")


async def _scenario(lab: Lab) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    ledger = _Ledger(Lines(await client.connect(LEDGER)))
    appending = asyncio.create_task(ledger.run())
    for asked, winner in (("a", "b"), ("b", "a"), ("a", "b")):
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


def test_a_connection_lives_through_switchovers() -> None:
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotests"))
    try:
        lab.up(choose(Wanted()))
        asyncio.run(_scenario(lab))
    finally:
        lab.down()
