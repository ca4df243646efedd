# SPDX-License-Identifier: GPL-2.0-only
"""What is made of a VM of another hypervisor, whichever that is."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from colo_ebpf.config.schema import Disk, Nic, VmTable
from colo_ebpf.errors import ConfigError

MOST_BYTES = 1 << 20  # of what is read; a domain has some 10 KiB
SOME_BRIDGE = "br0"  # where it is not known
Q35_FROM = 11  # of QEMU
MOST_QUEUES, MOST_VLANS = 8, 64  # of a NIC
_VLANS = 4095
_LIMIT = 8  # of NICs, and of disks
_TAP_CHARACTERS = 11
_Part = TypeVar("_Part", Nic, Disk)
_CHIPSET_SLOTS, _DISPLAY_SLOT, _SLOTS = 2, 2, 32


class Weight(enum.Enum):
    """How much of the guest is concerned."""

    CANNOT = "CANNOT"  # the guest loses something
    NOTE = "NOTE"  # it is something else now, or has to be looked at


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing that is not as it was."""

    weight: Weight
    what: str
    text: str  # what becomes of it, and what to do

    def line(self) -> str:
        """For people. What a file said cannot begin another line, or say anything to a terminal."""
        said = f"{self.weight.value} {self.what}: {self.text}"
        return "".join(c if c.isprintable() else "?" for c in said)


@dataclass(slots=True)
class Remarks:
    """As they come."""

    found: list[Remark] = field(default_factory=list)

    def cannot(self, what: str, text: str) -> None:
        """The guest loses it."""
        self.found.append(Remark(Weight.CANNOT, what, text))

    def note(self, what: str, text: str) -> None:
        """It is something else now, or has to be looked at."""
        self.found.append(Remark(Weight.NOTE, what, text))


@dataclass(frozen=True, slots=True)
class Imported:
    """A `[vm]` table, not checked yet, and what was said about it."""

    vm: VmTable
    remarks: tuple[Remark, ...]


def words(text: str) -> frozenset[str]:
    """Those of a line."""
    return frozenset(text.split())


def name_of(said: str, remarks: Remarks) -> str:
    """A name that a configuration takes."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", said)
    name = re.sub(r"^[^A-Za-z0-9]+", "", name)[:63]
    if not name:
        raise ConfigError(f"{said!r} has no letter that the name of a VM could be made of")
    if name != said:
        remarks.note(f"name {said!r}", f"became {name!r}: letters, digits, '.', '_' and '-' only")
    return name


def tap_of(vm: str, number: int) -> str:
    """The name of a tap of our own."""
    return f"tap{vm[:_TAP_CHARACTERS]}{number or ''}"


def socket_of(vm: str, name: str) -> str:
    """One that QEMU makes: in the only directory where it may."""
    return f"/run/colo-ebpf/{vm}/qemu/{name}.sock"


def overlays_of(vm: str) -> str:
    """Where its secondary keeps what was written since the last checkpoint."""
    return f"/dev/shm/colo-ebpf/{vm}"


def machine_of(said: str, release: tuple[int, int] | None, remarks: Remarks) -> str:
    """`release`: of this host's QEMU, if it is known."""
    if "q35" in said:
        if release is not None and release[0] >= Q35_FROM:
            remarks.note(f"machine {said}", "stays q35; the other host needs QEMU 11, too")
            return said
        remarks.cannot(
            f"machine {said}",
            "QEMU before 11 may crash with it at a checkpoint, so it became pc: its devices are at "
            "other PCI addresses; try whether the guest boots so, or install QEMU 11",
        )
        return "pc"
    if said in ("", "pc"):
        return "pc"
    if not re.fullmatch(r"pc-i440fx-[A-Za-z0-9._+-]+", said):
        remarks.cannot(f"machine {said}", "became pc: try whether the guest boots so")
        return "pc"
    remarks.note(
        f"machine {said}", "`qemu-system-x86_64 -machine help` has to name it on both hosts"
    )
    return said


def placed(
    nics: Sequence[Nic], disks: Sequence[Disk], vga: bool, remarks: Remarks
) -> tuple[list[Nic], list[Disk]]:
    """With a slot for each if any has one: QEMU would else give away what another one has."""
    least = _DISPLAY_SLOT + 1 if vga else _CHIPSET_SLOTS
    on_pci = [disk for disk in disks if disk.bus == "virtio-blk"]
    wanted = [part.slot for part in nics] + [part.slot for part in on_pci]
    good = [s if least <= s < _SLOTS and wanted.count(s) == 1 else 0 for s in wanted]
    free = [s for s in range(_SLOTS - 1, least - 1, -1) if s not in good]
    if good.count(0) > len(free):
        remarks.note("PCI addresses", "there is no slot for each: QEMU chooses them all")
        good = [0] * len(good)
    slots = iter([slot or (free.pop(0) if any(good) else 0) for slot in good])
    return (
        [_slotted(nic, next(slots)) for nic in nics],
        [_slotted(disk, next(slots) if disk in on_pci else 0) for disk in disks],
    )


def _slotted(part: _Part, slot: int) -> _Part:
    return msgspec.structs.replace(part, slot=slot)


def in_order(disks: Sequence[Disk], orders: Sequence[int | None]) -> list[Disk]:
    """With a boot order where the order of their tables is not the one. None: it is not booted.

    CD-ROMs come last: without an order they are not tried before a disk.
    """
    last = sorted(range(len(disks)), key=lambda n: is_cdrom(disks[n]))
    disks, orders = [disks[n] for n in last], [orders[n] for n in last]
    booted = sorted((order, n) for n, order in enumerate(orders) if order is not None)
    turns = {n: turn for turn, (_, n) in enumerate(booted, 1)}
    if [n for _, n in booted] == list(range(len(booted))):
        return list(disks)
    return [
        msgspec.structs.replace(disk, boot_order=turns.get(n, 0)) for n, disk in enumerate(disks)
    ]


def cdrom(path: str, was: str, what: str, remarks: Remarks) -> Disk:
    """One with a medium, in place of another kind of drive."""
    text = (
        f"was on {was} and is a CD-ROM on virtio-scsi now: the guest needs that driver. "
        f"{path} has to be on both hosts; or take its table out"
    )
    remarks.note(what, text)
    return Disk(path=path, bus="virtio-scsi", readonly=True)


def is_cdrom(disk: Disk) -> bool:
    """What the guest sees as one."""
    return disk.readonly and disk.bus == "virtio-scsi"


def queues_of(said: int, what: str, remarks: Remarks) -> int:
    """As many as a NIC may have."""
    if said > MOST_QUEUES:
        remarks.note(what, f"had {said} queues, and has {MOST_QUEUES} now")
    return max(1, min(said, MOST_QUEUES))


def vlans_of(
    vlan: int, trunk: Sequence[int], bridge: str, what: str, remarks: Remarks
) -> tuple[int, list[int]]:
    """The VLANs of a NIC, if there are such; its bridge has to filter."""
    others = sorted(set(trunk) - {vlan})
    if not (vlan or others):
        return 0, []
    if not all(0 < one < _VLANS for one in (vlan or 1, *others)) or len(others) > MOST_VLANS:
        remarks.cannot(what, f"its VLANs are left out: 1 to 4094, {MOST_VLANS} with tags at most")
        return 0, []
    text = f"is in its VLANs if {bridge} filters them on both hosts:"
    remarks.note(what, f"{text} ip link set {bridge} type bridge vlan_filtering 1")
    return vlan, others


def require(nics: Sequence[Nic], disks: Sequence[Disk], remarks: Remarks) -> None:
    """ConfigError if nothing is left that could be protected."""
    for parts, what in ((nics, "network card"), (disks, "disk")):
        if not parts or all(isinstance(part, Disk) and part.readonly for part in parts):
            raise ConfigError(_nothing_left(what, remarks))
        if len(parts) > _LIMIT:
            raise ConfigError(f"it has {len(parts)} {what}s, and a protected VM at most {_LIMIT}")


def _nothing_left(what: str, remarks: Remarks) -> str:
    said = [r.line() for r in remarks.found if r.weight is Weight.CANNOT and what in r.what]
    kind = "disk that it can write to" if what == "disk" else what
    return f"no {kind} is left for the VM" + (f": {'; '.join(said)}" if said else ": it has none")


def once(remarks: Remarks) -> tuple[Remark, ...]:
    """Each of them once, what the guest loses before what has to be looked at."""
    distinct = dict.fromkeys(remarks.found)
    return tuple(sorted(distinct, key=lambda remark: remark.weight is Weight.NOTE))
