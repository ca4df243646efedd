# SPDX-License-Identifier: GPL-2.0-only
"""One connection through two takeovers with a new pairing between them.

It is opened right before the first one, so that the two VMs number it differently: the client
goes on to see the numbers of a VM that died twice.
"""

from __future__ import annotations

import asyncio

import pytest

from colo_ebpf.lab import faults
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import FAMILIES
from colo_ebpf.lab.workload import LEDGER, until_serving
from tests.lab import Entries, protected


def _skew(lab: Lab, host: str) -> int:
    """Segments of the VM whose numbers were translated for good."""
    status = lab.ask(host)
    assert status is not None
    rows = {(r["program"], r["reason"]): r["packets"] for r in status["packets"]}
    return int(rows.get(("last-out", "rewritten"), 0))


async def _in_this_epoch(lab: Lab, client: Client) -> Lines:
    """A connection that no checkpoint has come after: a checkpoint makes the numbers equal."""
    for _ in range(20):
        before = _epoch(lab)
        lines = Lines(await client.connect(LEDGER))
        await lines.ask("SUM")
        if _epoch(lab) == before:
            return lines
        lines.close()
    raise AssertionError("a checkpoint came after every one of 20 connections")


def _epoch(lab: Lab) -> int:
    status = lab.ask("a")
    assert status is not None
    return int(status["epoch"])


async def _scenario(lab: Lab) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    ledger = Entries(await _in_this_epoch(lab, client))
    await ledger.append()
    for victim, survivor in (("a", "b"), ("b", "a")):
        await asyncio.to_thread(faults.kill, lab, victim, "host")
        await ledger.append(5)
        await asyncio.to_thread(lab.heal)
        await asyncio.to_thread(lab.wait_protected)
        log = lab.places[survivor].log.read_text()
        assert "bytes were unlike" in log, "the old image was compared, and not copied whole"
        await ledger.append(5)
        assert _skew(lab, survivor) > 0, "the connection was to be numbered differently"
    ledger.lines.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_lives_through_both(family: str) -> None:
    with protected("colotestf", family=family) as lab:
        asyncio.run(_scenario(lab))
