# SPDX-License-Identifier: GPL-2.0-only
"""A pair whose hosts speak IPv6: its daemons begin with new addresses, its paths are cut."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from colo_ebpf.datapath.net import namespaces
from colo_ebpf.lab import faults
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import LINK, MANAGEMENT, Place
from colo_ebpf.lab.workload import LEDGER, until_serving
from tests.lab import Entries, cli, protected

_TIMES_ASKED = 4  # a second each


def _asked_anew(_: Lab, place: Place) -> None:
    """The host has just come up: others are still asked whether they have its addresses."""

    def give() -> None:
        for device, address in ((LINK, place.link_address), (MANAGEMENT, place.management_address)):
            asked = Path(f"/proc/sys/net/ipv6/conf/{device}/dad_transmits")
            asked.write_text(f"{_TIMES_ASKED}\n")
            end = (f"{address}/{place.prefix_length}", "dev", device)
            for verb in ("del", "add"):
                subprocess.run(["ip", "address", verb, *end], check=True, timeout=10)

    namespaces.run_in(place.namespace, give)


def test_daemons_that_begin_with_new_addresses_become_a_pair() -> None:
    with protected("colotest6", prepare=_asked_anew, family="ipv6") as lab:
        found = cli(lab, "b", "doctor").stdout
        assert f"{lab.places['b'].link_address} can be used" in found


@pytest.mark.parametrize("path", ["link", "management"])
def test_a_path_that_was_cut_is_used_again(path: str) -> None:
    with protected("colotest6", family="ipv6") as lab:
        asyncio.run(_cut_and_heal(lab, path))


async def _cut_and_heal(lab: Lab, path: str) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    ledger = Entries(Lines(await client.connect(LEDGER)))
    await ledger.append(3)
    await asyncio.to_thread(faults.cut, lab, path)
    await ledger.append(3)
    await asyncio.to_thread(lab.heal)
    await asyncio.to_thread(lab.wait_protected)
    await ledger.append(3)
    ledger.lines.close()
