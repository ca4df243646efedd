# SPDX-License-Identifier: GPL-2.0-only
"""A pair whose hosts have one disk: the loser is turned off, nothing is copied, all is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.lab import faults, ledger
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.workload import LEDGER, until_serving
from tests.capabilities import require
from tests.lab import Entries, clean, cli


class _SharedLab(Lab):
    """What became of its one disk."""

    @property
    def disk(self) -> Path:
        """Of both hosts."""
        return self.places["a"].shared_disk

    def fenced(self, host: str) -> int:
        """How often the command on this host has turned the other one off."""
        calls = self.places[host].fence.with_suffix(".calls")
        return len(calls.read_text().splitlines()) if calls.exists() else 0

    def until_whole(self, host: str) -> None:
        """It serves alone, and what it had apart from the disk is written there."""
        self.wait(lambda: _is(self.ask(host), "solo", "whole"), f"{host} merges nothing", 60)


def _is(status: dict[str, str] | None, mode: str, disk: str) -> bool:
    return status is not None and (status["mode"], status["disk"]) == (mode, disk)


@pytest.fixture
def lab() -> Iterator[_SharedLab]:
    """A protected pair; the primary is a."""
    require("root", "bpf", "qemu", "guest")
    lab = _SharedLab("colotestd")
    clean(lab)
    try:
        lab.build(choose(Wanted(shared_disk=True)))
        for place in lab.places.values():
            lab.start_daemon(place)
        lab.wait_protected()
        yield lab
    finally:
        lab.down()


def _missing(image: bytes, count: int) -> list[int]:
    found = {n: ledger.block(image, n) for n in range(1, count + 1)}
    return [n for n, entry in found.items() if entry is None or entry[1] != "entry"]


async def _work(lab: _SharedLab) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    entries = Entries(Lines(await client.connect(LEDGER)))
    await entries.append(40)

    await asyncio.to_thread(faults.kill, lab, "a", "host")
    await entries.append(40)
    assert lab.fenced("b") == 1
    await asyncio.to_thread(lab.until_whole, "b")
    assert _missing(lab.disk.read_bytes(), entries.number) == []
    await asyncio.to_thread(lab.heal)
    await asyncio.to_thread(lab.wait_protected)
    await entries.append(40)

    same = await asyncio.to_thread(cli, lab, "b", "verify", "--sample-mib", "4")
    assert same.returncode == 0, same.stdout + same.stderr
    assert "shared: places drawn at random" in same.stdout

    done = await asyncio.to_thread(cli, lab, "b", "switchover", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a serves now")
    await entries.append(40)
    await asyncio.to_thread(lab.wait_protected)
    await entries.append(40)
    assert (lab.fenced("a"), lab.fenced("b")) == (0, 1)
    assert _missing(lab.disk.read_bytes(), entries.number) == []


def test_one_disk_lives_through_the_death_of_hosts_and_vms(lab: _SharedLab) -> None:
    asyncio.run(_work(lab))
