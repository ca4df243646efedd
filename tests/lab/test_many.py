# SPDX-License-Identifier: GPL-2.0-only
"""Four VMs (COLO_VMS) on two hosts, half of them primary on each: nothing of one touches another.

As found: a second VM with its link left at the defaults took the first one off the net, and both
daemons said protected. Here everything is left at its default.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from colo_ebpf.lab import faults, processes
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import first_host
from colo_ebpf.lab.workload import LEDGER, served, until_serving
from tests.capabilities import require
from tests.lab import Entries, clean

_VMS = int(os.environ.get("COLO_VMS", "4"))
_ENTRIES = 5


@pytest.fixture(scope="module")
def vms() -> Iterator[list[Lab]]:
    """All protected."""
    require("root", "bpf", "qemu", "guest")
    name = clean(Lab("colotmany")).name
    labs = [Lab(name, vm=number) for number in range(_VMS)]
    try:
        guest = choose(Wanted())
        for number, lab in enumerate(labs):
            lab.build(replace(guest, address=f"192.168.77.{10 + number}"))
            for place in lab.places.values():
                lab.start_daemon(place)
        for lab in labs:
            lab.wait_protected()
        asyncio.run(_until_all_serve(labs))
        yield labs
    finally:
        labs[0].down()


def _serving(lab: Lab) -> str:
    """Which host's VM clients talk to."""
    for host in lab.places:
        if (lab.ask(host) or {}).get("role") in ("primary", "solo"):
            return host
    raise AssertionError(f"nobody serves {lab.places['a'].name}")


def _generation(lab: Lab) -> int:
    return int((lab.ask("a") or lab.ask("b") or {})["record"]["generation"])


async def _until_all_serve(vms: list[Lab]) -> None:
    """They boot beside each other, on the processors of one machine: each waits for all."""
    for lab in vms:
        client = Client(lab.namespace_of("client"), lab.guest_address)
        for attempt in range(1, _VMS + 1):
            try:
                await until_serving(client)
                break
            except TimeoutError:
                if attempt == _VMS:
                    raise


async def _ledgers(vms: list[Lab]) -> list[Entries]:
    """A connection to each."""
    found = []
    for lab in vms:
        client = Client(lab.namespace_of("client"), lab.guest_address)
        found.append(Entries(Lines(await served(client, LEDGER))))
    return found


def test_they_run_on_either_host_at_first(vms: list[Lab]) -> None:
    assert [_serving(lab) for lab in vms] == [first_host(number) for number in range(_VMS)]


def test_each_fails_over_alone(vms: list[Lab]) -> None:
    async def run() -> None:
        ledgers = await _ledgers(vms)
        for victim in vms:
            before = [(_serving(lab), _generation(lab)) for lab in vms]
            host, generation = _serving(victim), _generation(victim)
            pid = int((victim.ask(host) or {})["vm_process"]["pid"])
            processes.send([pid], signal.SIGKILL)
            await asyncio.gather(*(one.append(_ENTRIES) for one in ledgers))
            await asyncio.to_thread(victim.wait_protected)
            assert (_serving(victim) != host, _generation(victim) > generation) == (True, True)
            after = [(_serving(lab), _generation(lab)) for lab in vms]
            others = [number for number, lab in enumerate(vms) if lab is not victim]
            assert [after[n] for n in others] == [before[n] for n in others]
        for one in ledgers:
            one.lines.close()

    asyncio.run(run())


def test_a_host_takes_all_of_them(vms: list[Lab]) -> None:
    async def run() -> None:
        ledgers = await _ledgers(vms)
        await asyncio.gather(*(one.append(_ENTRIES) for one in ledgers))
        await asyncio.to_thread(faults.kill, vms[0], "a", "host")
        await asyncio.gather(*(one.append(_ENTRIES) for one in ledgers))
        assert [_serving(lab) for lab in vms] == ["b"] * _VMS
        for lab in vms:
            await asyncio.to_thread(lab.heal)
        for lab in vms:
            await asyncio.to_thread(lab.wait_protected)
        for one in ledgers:
            await one.append(_ENTRIES)
            one.lines.close()

    asyncio.run(run())
