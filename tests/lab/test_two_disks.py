# SPDX-License-Identifier: GPL-2.0-only
"""A VM with two disks: its host dies, the survivor has both, makes a new replica of both."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from colo_ebpf.lab import faults, ledger
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import Place
from colo_ebpf.lab.workload import LEDGER, until_serving
from tests.capabilities import require
from tests.lab import clean, cli

DISK_BYTES = 32 << 20


def _second_disk(place: Place) -> None:
    path = place.directory / "disk1.raw"
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    table = f'[[vm.disk]]\npath = "{path}"\noverlay-dir = "{place.directory / "overlay"}"\n\n'
    text = place.config.read_text().replace("[host]", table + "[host]")
    place.config.write_text(text.replace('append = "', 'append = "colo.disk=vdb '))


def _cli(lab: Lab, host: str, *words: str) -> Any:
    done = cli(lab, host, *words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


class _Writer:
    """Entries of the ledger go to the two disks in turn."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.count = 0

    async def append(self, count: int) -> None:
        client = Client(self._lab.namespace_of("client"), self._lab.guest_address)
        await until_serving(client)
        lines = Lines(await client.connect(LEDGER))
        for _ in range(count):
            self.count += 1
            async with asyncio.timeout(60):
                reply = await lines.ask(f"ADD {self.count} entry {self.count}")
            assert reply.startswith(f"OK {self.count} "), reply
        lines.close()

    def missing_on(self, place: Place) -> list[int]:
        images = [(place.directory / name).read_bytes() for name in ("disk.raw", "disk1.raw")]
        missing = []
        for number in range(1, self.count + 1):
            found = ledger.block(images[(number - 1) % 2], number)
            if found is None or found[1] != f"entry {number}":
                missing.append(number)
        return missing


def _both_equal(lab: Lab, host: str) -> None:
    found = _cli(lab, host, "verify")
    assert found["equal"]
    assert [disk["name"] for disk in found["disks"]] == ["parent0", "parent1"]
    assert all(disk["read_bytes"] > 0 for disk in found["disks"])


def test_both_live_through_the_death_of_a_host() -> None:
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotest2"))
    try:
        lab.build(choose(Wanted()))
        for place in lab.places.values():
            _second_disk(place)
            lab.start_daemon(place)
        lab.wait_protected()
        checks = {one["name"]: one["ok"] for one in _cli(lab, "a", "doctor")}
        assert all(checks[f"{what} {n}"] for what in ("disk", "overlays") for n in (0, 1))
        writer = _Writer(lab)
        asyncio.run(writer.append(40))
        _both_equal(lab, "a")

        faults.kill(lab, "a", "host")
        asyncio.run(writer.append(20))
        lab.wait(lambda: (lab.ask("b") or {}).get("disk") == "whole", "b merges nothing", 60)
        assert writer.missing_on(lab.places["b"]) == []

        lab.heal()
        lab.wait_protected()
        asyncio.run(writer.append(20))
        _both_equal(lab, "b")
        for place in lab.places.values():
            assert writer.missing_on(place) == [], place.host
        assert not list((lab.places["b"].directory / "overlay").glob("*.qcow2"))
    finally:
        lab.down()
