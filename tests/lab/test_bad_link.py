# SPDX-License-Identifier: GPL-2.0-only
"""The link between the hosts loses, doubles and delays frames: of the VMs, of QEMU, heartbeats.

What is lost on the link leaves one VM without an input, or its output without a counterpart; a
checkpoint heals both. The clients see nothing of it, and the survivor knows all they saw.
"""

from __future__ import annotations

import asyncio

from colo_ebpf.datapath.net import namespaces
from colo_ebpf.lab import faults, topology
from colo_ebpf.lab.client import Client
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.workload import PATIENCE_S, Datagrams, Dice, Download, Ledger, until_serving
from tests.capabilities import require
from tests.lab import clean
from tests.live.noise import Noise

_LOSE, _TWICE, _LATE = 0.01, 0.01, 0.03
_DOWNLOAD_BYTES, _PACE_BYTES_S = 6 << 20, 1 << 20
_ENTRIES = 60
_POLL_S = 0.05


def _noises(lab: Lab) -> list[Noise]:
    """On both directions of the link, in host a."""
    namespace = lab.places["a"].namespace

    def make() -> list[Noise]:
        return [Noise(namespace, topology.LINK, ingress, 8 + ingress) for ingress in (True, False)]

    return namespaces.run_in(namespace, make)


async def _until(work: list[asyncio.Task[None]], ledger: Ledger, entries: int) -> None:
    async with asyncio.timeout(2 * PATIENCE_S):
        while len(ledger.entries) < entries:
            for task in work:
                if task.done():
                    task.result()
            await asyncio.sleep(_POLL_S)


async def _scenario(lab: Lab, noises: list[Noise]) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    ledger, dice = Ledger(client), Dice(client)
    download = Download(client, _DOWNLOAD_BYTES, _PACE_BYTES_S)
    pings = [Datagrams(client, kind) for kind in ("icmp", "udp")]
    stop = asyncio.Event()
    jobs = [ledger.run(stop), dice.run(stop), *(one.run(stop) for one in pings)]
    work = [asyncio.create_task(job) for job in jobs]
    for noise in noises:
        noise.set(_LOSE, _TWICE, _LATE)
    try:
        await download.run()
        assert download.ok, "other bytes came"
        await _until(work, ledger, _ENTRIES)
        status = await asyncio.to_thread(lab.ask, "a")
        assert status is not None
        assert status["protected"], "a bad link is no reason to part"
        _was_bad(status, noises)
        await asyncio.to_thread(faults.kill, lab, "a", "host")
        await _until(work, ledger, len(ledger.entries) + _ENTRIES)
    finally:
        stop.set()
        results = await asyncio.gather(*work, return_exceptions=True)
    assert [r for r in results if r is not None] == []
    await ledger.recheck()
    await dice.recheck()
    wrong = [*ledger.wrong, *dice.wrong, *(w for one in pings for w in one.wrong)]
    assert wrong == []
    assert all(one.answered for one in pings)


def _was_bad(status: dict[str, object], noises: list[Noise]) -> None:
    """Frames went each way, and the data plane noticed."""
    for noise in noises:
        assert all(noise.counts().values()), noise.counts()
    packets = status["packets"]
    assert isinstance(packets, list)
    reasons = {r["reason"]: r["packets"] for r in packets if r["program"] == "cmp-svm"}
    assert reasons.keys() & {"gap", "old"}, (reasons, status["generation"])


def test_the_clients_see_nothing_of_it() -> None:
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotestn"))
    noises: list[Noise] = []
    try:
        lab.up(choose(Wanted()))
        noises = _noises(lab)
        asyncio.run(_scenario(lab, noises))
    finally:
        lab.down()
        for noise in noises:
            noise.close()
