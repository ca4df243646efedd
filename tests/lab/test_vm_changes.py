# SPDX-License-Identifier: GPL-2.0-only
"""A disk grows, one is added, memory changes, a backup is made and put back: `change.md`.

All of it while the VM is off, in the steps of that page.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from colo_ebpf.lab import faults
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import HOSTS, Place
from tests.capabilities import require
from tests.lab import clean
from tests.lab.test_guest_life import (
    MONITOR,
    _both_say_off,
    _primary,
    _serves,
    _start_again,
    _tell,
)

_MORE_BYTES = 16 << 20


@pytest.fixture
def pair() -> Iterator[Lab]:
    """A protected pair; its QEMUs have a monitor for us."""
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotchange"))
    try:
        lab.build(choose(Wanted()))
        for place in lab.places.values():
            monitor = ["-qmp", f"unix:{place.run_dir}/{MONITOR},server=on,wait=off"]
            _configured(place, r"\[vm\]\n", f"[vm]\nextra-args = {json.dumps(monitor)}\n")
            lab.start_daemon(place)
        lab.wait_protected()
        yield lab
    finally:
        lab.down()


def _configured(place: Place, pattern: str, new: str) -> None:
    text, count = re.subn(pattern, lambda _: new, place.config.read_text())
    assert count == 1, pattern
    place.config.write_text(text)


def _while_off(lab: Lab, change: Callable[[Place], None]) -> str:
    """Power the guest off, change both hosts, start it again; the host that has the image."""
    image = _primary(lab)
    _tell(lab, "POWEROFF")
    _both_say_off(lab, image)
    for host in HOSTS:
        change(lab.places[host])
        faults.kill(lab, host, "daemon")
    lab.heal()
    _both_say_off(lab, image)
    return image


def _asked(lab: Lab, host: str, command: str) -> Any:
    async def ask() -> Any:
        client = QMPClient("operator")
        await client.connect(str(lab.places[host].run_dir / MONITOR))
        try:
            return await client.execute(command)
        finally:
            await client.disconnect()

    return asyncio.run(ask())


def _disks(lab: Lab) -> list[int]:
    """As the guest sees them, in bytes."""
    found = _asked(lab, _primary(lab), "query-block")
    sizes = {
        one["inserted"]["node-name"]: one["inserted"]["image"]["virtual-size"]
        for one in found
        if one.get("inserted") and "peripheral/disk" in one.get("qdev", "")
    }
    return list(sizes.values())


def test_a_vm_is_changed_while_it_is_off(pair: Lab, tmp_path: Path) -> None:
    before_bytes = pair.places["a"].disk.stat().st_size
    count = _serves(pair)

    def grow(place: Place) -> None:
        os.truncate(place.disk, before_bytes + _MORE_BYTES)
        _configured(place, "memory-mib = [0-9]+\n", "memory-mib = 160\n")

    image = _while_off(pair, grow)
    backup = tmp_path / "backup.raw"
    shutil.copyfile(pair.places[image].disk, backup)
    _start_again(pair, image, count)
    assert _disks(pair) == [before_bytes + _MORE_BYTES]
    memory = _asked(pair, _primary(pair), "query-memory-size-summary")
    assert memory["base-memory"] == 160 << 20
    later = count
    for _ in range(5):
        later = _serves(pair, later)

    def put_back(place: Place) -> None:
        if place.host == image:
            shutil.copyfile(backup, place.disk)

    assert _while_off(pair, put_back) == image
    _start_again(pair, image, count)
    assert _serves(pair) < later, "what was written after the backup is gone"

    def add(place: Place) -> None:
        added = place.disk.with_name("added.raw")
        with added.open("wb") as file:
            file.truncate(_MORE_BYTES)
        overlays = json.dumps(str(place.disk.with_name("overlay")))
        table = f"[[vm.disk]]\npath = {json.dumps(str(added))}\noverlay-dir = {overlays}\n\n"
        _configured(place, r"\[host\]\n", f"{table}[host]\n")

    image = _while_off(pair, add)
    _start_again(pair, image, 0)
    assert _disks(pair) == [before_bytes + _MORE_BYTES, _MORE_BYTES]
