# SPDX-License-Identifier: GPL-2.0-only
"""What this host's QEMU and images are, to be compared with the other host's (`compatibility`)."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

from colo_ebpf.config.schema import Config, Disk, VmTable
from colo_ebpf.control.decision.compatibility import UNKNOWN
from colo_ebpf.control.qemu import support
from colo_ebpf.errors import StorageError, VmError
from colo_ebpf.storage import image
from colo_ebpf.storage.shared_disk import name_of

_USUAL = {  # of NICs and disks; only what is otherwise is said
    "slot": 0,
    "queues": 1,
    "vhost": False,
    "bus": "virtio-blk",
    "readonly": False,
    "serial": "",
    "boot_order": 0,
}
_LONGEST = 120  # characters of one value; what is longer is shortened, and told by its digest
_PATH = re.compile(r"/[^,=]*")


async def compatibility_of(config: Config, accel: str) -> dict[str, str]:
    """Of this host, as far as it can be found out. StorageError if a shared disk has no name: then
    nobody knows whether it is the other host's."""
    sizes = [await asyncio.to_thread(_size_bytes, disk) for disk in config.vm.disk]
    said = described(config, accel, await _version(config.vm.qemu), sizes)
    for number, (disk, size_bytes) in enumerate(zip(config.vm.disk, sizes, strict=True)):
        if disk.readonly:  # nothing makes it equal
            digest = await asyncio.to_thread(_digest, disk, size_bytes)
            said[f"digest of disk {number}"] = digest
        if disk.x_shared:
            name = await asyncio.to_thread(name_of, Path(disk.path))
            said[f"name of shared disk {number}"] = _short(name)
    if config.vm.shared_disks:
        said["fence.reservation"] = str(config.fence.reservation).lower()
    return said


def described(
    config: Config, accel: str, version: str, sizes_bytes: list[int | None]
) -> dict[str, str]:
    """In words. `version`: of QEMU, major and minor; `sizes_bytes`: of the images."""
    vm = config.vm
    values = {
        "QEMU": version,
        "vm.machine": vm.machine,
        "accelerator": accel,
        "vm.memory-mib": str(vm.memory_mib),
        "vm.cpus": str(vm.cpus),
        "vm.cpu": vm.cpu,
        "vm.uuid": vm.uuid.lower(),
        "firmware": "UEFI" if vm.firmware else "BIOS",
        "number of NICs": str(len(vm.nic)),
        "number of disks": str(len(vm.disk)),
    }
    for number, nic in enumerate(vm.nic):
        values[f"MAC of NIC {number}"] = nic.mac.lower()
        values[f"MTU of NIC {number}"] = str(nic.mtu)
    for number, (disk, size_bytes) in enumerate(zip(vm.disk, sizes_bytes, strict=True)):
        values[f"format of disk {number}"] = disk.format
        values[f"sector-bytes of disk {number}"] = str(disk.sector_bytes)
        values[f"bytes of disk {number}"] = str(size_bytes or UNKNOWN)
    values["hardware"] = _hardware(vm)
    values["vm.append"] = vm.append
    values["vm.extra-args"] = " ".join(_PATH.sub("PATH", word) for word in vm.extra_args)
    return {name: _short(value) for name, value in values.items()}


def _hardware(vm: VmTable) -> str:
    """Whatever is not as it is by itself."""
    said = [name for name in ("rng", "vga") if getattr(vm, name)]
    if vm.clock != "utc":
        said.append(f"clock {vm.clock}")
    for kind, parts in (("NIC", vm.nic), ("disk", vm.disk)):
        for number, part in enumerate(parts):
            of = f"of {kind} {number}"
            for name, usual in _USUAL.items():
                value = getattr(part, name, usual)
                if value != usual:
                    shown = "" if value is True else f" {value}"
                    said.append(f"{name.replace('_', '-')}{shown} {of}")
    return ", ".join(said)


def _short(value: str) -> str:
    if len(value) <= _LONGEST:
        return value
    digest = hashlib.blake2b(value.encode(), digest_size=4).hexdigest()
    return f"{value[:_LONGEST]}... ({digest})"


async def _version(binary: str) -> str:
    try:
        major, minor = await support.release_of(binary)
    except VmError:
        return UNKNOWN
    return f"{major}.{minor}"


def _size_bytes(disk: Disk) -> int | None:
    """None: the image cannot be read now."""
    try:
        found = image.look(Path(disk.path), disk.format, disk.sector_bytes, readonly=disk.readonly)
    except StorageError:
        return None
    return found.virtual_bytes


def _digest(disk: Disk, size_bytes: int | None) -> str:
    """Of one that is only read."""
    if size_bytes is None:
        return UNKNOWN
    try:
        return image.digest(Path(disk.path), size_bytes)
    except StorageError:
        return UNKNOWN
