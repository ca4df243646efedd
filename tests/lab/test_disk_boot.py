# SPDX-License-Identifier: GPL-2.0-only
"""A VM that boots from its own disk, by the firmware and a boot loader: its host dies."""

from __future__ import annotations

import asyncio
import shutil
import struct

import pytest

from colo_ebpf.errors import LabError
from colo_ebpf.lab import faults, ledger
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import Place
from colo_ebpf.lab.workload import LEDGER, until_serving
from tests.capabilities import GUEST, require
from tests.lab import Entries, protected

DISK, UEFI_DISK = GUEST / "boot.raw", GUEST / "boot-uefi.raw"
CODE, VARIABLES = GUEST / "OVMF_CODE_4M.fd", GUEST / "OVMF_VARS_4M.fd"
UUID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"


def _partition(place: Place, number: int) -> bytes:
    """What is in it, on this host's image."""
    image = place.disk.read_bytes()
    start, count = struct.unpack_from("<II", image, 446 + 16 * (number - 1) + 8)
    return image[start * 512 : (start + count) * 512]


async def _scenario(lab: Lab) -> int:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    entries = Entries(Lines(await client.connect(LEDGER)))
    await entries.append(20)
    await asyncio.to_thread(faults.kill, lab, "a", "host")
    await entries.append(20)
    await asyncio.to_thread(lab.heal)
    await asyncio.to_thread(lab.wait_protected)
    await entries.append(5)
    entries.lines.close()
    return entries.number


def test_a_disk_boots_and_survives_its_host() -> None:
    require("guest-boot")
    with protected("colotboot", choose(Wanted(disk=str(DISK)))) as lab:
        for place in lab.places.values():
            text = place.config.read_text()
            assert 'kernel = ""' in text and 'append = ""' in text
        _holds(lab, asyncio.run(_scenario(lab)))


def _with_uefi(_lab: Lab, place: Place) -> None:
    """Each host has variables of its own."""
    own = place.directory / "vars.fd"
    shutil.copyfile(VARIABLES, own)
    words = f'firmware = "{CODE}"\nfirmware-vars = "{own}"\nuuid = "{UUID}"\ncpu = "qemu64"\n'
    place.config.write_text(place.config.read_text().replace("[vm]\n", f"[vm]\n{words}"))


def test_uefi_boots_a_disk_that_survives_its_host() -> None:
    require("guest-boot")
    guest = choose(Wanted(disk=str(UEFI_DISK), memory_mib=256))
    with protected("colotuefi", guest, prepare=_with_uefi) as lab:
        _holds(lab, asyncio.run(_scenario(lab)))
        template = VARIABLES.read_bytes()
        for place in lab.places.values():
            written = (place.directory / "vars.fd").read_bytes()
            assert len(written) == len(template)
            assert written != template, "the firmware remembers what it booted"


def _holds(lab: Lab, count: int) -> None:
    """The survivor has all entries on its second partition."""
    written = _partition(lab.places["b"], 2)
    found = [ledger.block(written, number) for number in range(1, count + 1)]
    assert [one and one[1] for one in found] == ["entry"] * count


@pytest.mark.parametrize("words", [{"append": "quiet"}, {"initrd": "/initrd"}])
def test_what_a_boot_loader_says_is_not_asked_for_beside_a_disk(words: dict[str, str]) -> None:
    with pytest.raises(LabError, match="without --kernel it boots from its disk"):
        choose(Wanted(disk="/disk.raw", **words))
