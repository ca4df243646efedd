# SPDX-License-Identifier: GPL-2.0-only
"""A VM with a SCSI disk, a CD-ROM and several queues, as a user writes it, through a failover."""

from __future__ import annotations

import asyncio
import json

from colo_ebpf.lab import faults
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import Place
from colo_ebpf.lab.workload import LEDGER, until_serving
from tests.lab import cli, protected

MEDIUM = b"CD001" * 8192


def _more_hardware(_lab: Lab, place: Place) -> None:
    medium = place.directory / "seed.iso"
    medium.write_bytes(MEDIUM)
    text = place.config.read_text()
    text = text.replace('append = "', 'append = "colo.scsi colo.ledger=sda ')
    text = text.replace("[[vm.disk]]\n", '[[vm.disk]]\nbus = "virtio-scsi"\n', 1)
    text = text.replace("[[vm.nic]]\n", "[[vm.nic]]\nqueues = 4\n", 1)
    table = f'[[vm.disk]]\npath = "{medium}"\nbus = "virtio-scsi"\nreadonly = true\n\n'
    place.config.write_text(text.replace("[host]", table + "[host]"))


async def _append(lab: Lab, numbers: range) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    lines = Lines(await client.connect(LEDGER))
    for number in numbers:
        async with asyncio.timeout(60):
            reply = await lines.ask(f"ADD {number} entry {number}")
        assert reply.startswith(f"OK {number} "), reply
    lines.close()


def test_it_lives_through_the_death_of_a_host() -> None:
    with protected("colotesth", prepare=_more_hardware) as lab:
        asyncio.run(_append(lab, range(1, 31)))
        found = cli(lab, "a", "verify", "--json")
        assert found.returncode == 0, found.stdout + found.stderr
        assert [disk["name"] for disk in json.loads(found.stdout)["disks"]] == ["parent0"]
        faults.kill(lab, "a", "host")
        asyncio.run(_append(lab, range(31, 51)))
        lab.heal()
        lab.wait_protected()
        asyncio.run(_append(lab, range(51, 61)))
        for place in lab.places.values():
            assert (place.directory / "seed.iso").read_bytes() == MEDIUM
