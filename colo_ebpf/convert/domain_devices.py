# SPDX-License-Identifier: GPL-2.0-only
"""The devices of a libvirt domain: disks, NICs, and what else there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from xml.etree.ElementTree import Element

from colo_ebpf.config.schema import Disk, Nic
from colo_ebpf.convert import imported
from colo_ebpf.convert.imported import SOME_BRIDGE, Remarks, words
from colo_ebpf.errors import ConfigError

_FORMATS = ("raw", "qcow2")
_MTUS = range(576, 9001)
_NO_DISKS = {
    "lun": "SCSI commands to a device of the host are not replicated: use device='disk'",
    "floppy": "its medium is ejected; what the guest needs of it may be a disk",
}
_QUIET = words("emulator controller panic audio console hub memballoon")
_NOT_COPIED = "its state is not copied with a checkpoint: take it out of the guest"
_LOST = {
    "hostdev": "a device of the host is in one VM only: take it out of the guest",
    "filesystem": "a directory of the host is not replicated: use a disk or a network file system",
    "tpm": "its state is outside of QEMU: suspend BitLocker or the like, then do without it",
    "shmem": "memory shared with the host cannot be equal on two hosts",
    "memory": "memory modules are left out: vm.memory-mib is all that there is",
    "vsock": "the guest cannot talk to two hosts: use a network",
    "iommu": "is left out",
    "nvram": "is left out",
    "smartcard": _NOT_COPIED,
    "lease": "the arbiter decides who may use the disks",
}
_LEFT_OUT = {
    "redirdev": "redirection of USB is left out",
    "redirfilter": "redirection of USB is left out",
    "sound": "is left out",
    "watchdog": "is left out: the guest's own watchdog device; a hung VM is noticed by its host",
    "parallel": "is left out",
    "crypto": "is left out",
    "pstore": "is left out",
}


@dataclass(slots=True)
class Devices:
    """What is carried over."""

    nics: list[Nic] = field(default_factory=list)
    disks: list[Disk] = field(default_factory=list)
    boot_orders: list[int | None] = field(default_factory=list)
    nic_boots: bool = False
    rng: bool = False
    vga: bool = False
    extra_args: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Reader:
    vm: str
    one_bus: bool  # of PCI, as the machine pc has
    virtio_scsi: frozenset[str]  # controllers of that kind
    to: Devices
    remarks: Remarks


def child(parent: Element | None, path: str) -> Element:
    """What is there, or nothing in its form."""
    found = parent.find(path) if parent is not None else None
    return found if found is not None else Element("none")


def number(said: str | None, what: str) -> int:
    """ConfigError if it is none."""
    text = (said or "").strip()
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ConfigError(f"{what}: {text[:40]!r} is no number")
    return int(text)


def read(devices: Element, vm: str, one_bus: bool, remarks: Remarks) -> Devices:
    """All of them, in their order."""
    to = Devices()
    reader = _Reader(vm, one_bus, _virtio_scsi(devices), to, remarks)
    for one in devices:
        if one.tag in _READERS:
            _READERS[one.tag](reader, one)
        elif one.tag in _LOST:
            remarks.cannot(f"{one.tag} {_kind(one)}".strip(), _LOST[one.tag])
        elif one.tag not in _QUIET:
            text = _LEFT_OUT.get(one.tag, "is not known here, and left out")
            remarks.note(f"{one.tag} {_kind(one)}".strip(), text)
    _balloon(devices, remarks)
    return to


def _virtio_scsi(devices: Element) -> frozenset[str]:
    """By number; if its model is not said libvirt takes another."""
    return frozenset(
        one.get("index", "0")
        for one in devices.iterfind("controller[@type='scsi']")
        if one.get("model", "").startswith("virtio")
    )


def _kind(one: Element) -> str:
    return one.get("model") or one.get("type") or one.get("mode") or ""


def _balloon(devices: Element, remarks: Remarks) -> None:
    if child(devices, "memballoon").get("model", "none") != "none":
        remarks.note("memballoon", "is left out: the guest has vm.memory-mib at all times")


# --- disks ------------------------------------------------------------------------------


def _disk(reader: _Reader, one: Element) -> None:
    target, remarks = child(one, "target"), reader.remarks
    kind, device = one.get("type", "file"), one.get("device", "disk")
    source = child(one, "source")
    path = source.get("file") or source.get("dev") or ""
    what = f"{'disk' if device == 'lun' else device} {target.get('dev', '?')}"
    if device in ("cdrom", "floppy") and one.find("source") is None:
        remarks.note(what, "is empty, and left out")
        return
    if why := _not_a_disk(one, kind, device, path):
        remarks.cannot(what, why)
        return
    reader.to.boot_orders.append(_boot_order(one))
    if device == "cdrom":
        reader.to.disks.append(imported.cdrom(path, target.get("bus", "ide"), what, remarks))
    else:
        reader.to.disks.append(_hard_disk(reader, one, path, what))


def _hard_disk(reader: _Reader, one: Element, path: str, what: str) -> Disk:
    remarks, image = reader.remarks, child(one, "driver").get("type", "raw")
    readonly = one.find("readonly") is not None and image == "raw"
    bus = _bus_of(reader, one, readonly)
    _told_of_disk(one, what, bus, readonly, remarks)
    return Disk(
        path=path,
        overlay_dir="" if readonly else imported.overlays_of(reader.vm),
        format=image,
        bus=bus,
        readonly=readonly,
        sector_bytes=_sector_bytes(one, what, remarks),
        serial=_serial(one, what, remarks),
        slot=_slot_of(reader, one) if child(one, "target").get("bus") == "virtio" else 0,
    )


def _bus_of(reader: _Reader, one: Element, readonly: bool) -> str:
    """virtio-scsi if it was there; what is only read would be a CD-ROM there."""
    controller = child(one, "address[@type='drive']").get("controller", "0")
    was_scsi = child(one, "target").get("bus") == "scsi" and controller in reader.virtio_scsi
    return "virtio-scsi" if was_scsi and not readonly else "virtio-blk"


def _not_a_disk(one: Element, kind: str, device: str, path: str) -> str:
    """Why it cannot be carried over; empty if it can."""
    if device in _NO_DISKS:
        return _NO_DISKS[device]
    if kind not in ("file", "block"):
        protocol = child(one, "source").get("protocol") or kind
        return f"{protocol}: a disk is a file or a block device; map it to one, or copy it"
    image = child(one, "driver").get("type", "raw")
    formats = _FORMATS[:1] if device == "cdrom" else _FORMATS
    if not path or image not in formats:
        how = f"{image}: convert it, `qemu-img convert -O {formats[-1]} {path} NEW`, and name that"
        return how if path else "has no source"
    if one.find("source/encryption") is not None or one.find("encryption") is not None:
        return "encrypted by QEMU: encrypt it in the guest, or below, with dm-crypt"
    if one.find("mirror") is not None:
        return "is being copied by libvirt: let that end (`virsh blockjob`), then import it"
    return ""


def _told_of_disk(one: Element, what: str, bus: str, readonly: bool, remarks: Remarks) -> None:
    was = child(one, "target").get("bus", "virtio")
    if bus == "virtio-blk" and was != "virtio":
        text = (
            f"was on {was} and is virtio-blk now: the guest needs that driver when it boots, and "
            "has to find its file systems by UUID or label"
        )
        remarks.note(what, text)
    if one.find("readonly") is not None and not readonly:
        text = "was read-only and can be written now: make it raw (qemu-img convert), and readonly"
        remarks.cannot(what, text)
    if one.find("shareable") is not None:
        remarks.cannot(what, "was shared: no other VM may use it while it is protected")
    if one.find("iotune") is not None:
        remarks.note(what, "its limits of I/O are left out")
    if one.find("backingStore/source") is not None:
        remarks.note(what, "has a backing file, which has to be on both hosts, or flatten it")
    if child(one, "driver").get("discard") == "unmap":
        remarks.note(what, "discard is not passed on: what the guest trims stays allocated")


def _sector_bytes(one: Element, what: str, remarks: Remarks) -> Literal[512, 4096]:
    sector = number(child(one, "blockio").get("logical_block_size", "512"), "logical_block_size")
    if sector == 4096:
        return 4096
    if sector != 512:
        remarks.cannot(what, f"had sectors of {sector} bytes and has 512 now")
    return 512


def _serial(one: Element, what: str, remarks: Remarks) -> str:
    serial = (one.findtext("serial") or "").strip()
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,20}", serial):
        remarks.note(what, f"its serial {serial!r} is left out: 20 letters or digits at most")
        return ""
    return serial


def _boot_order(one: Element) -> int | None:
    order = child(one, "boot").get("order")
    return None if order is None else number(order, "boot order")


def _slot_of(reader: _Reader, one: Element) -> int:
    """Where it is on the only bus of `pc`; 0: elsewhere."""
    address = child(one, "address[@type='pci']")
    try:
        bus, slot, function = (
            int(address.get(name, "0x0"), 16) for name in ("bus", "slot", "function")
        )
    except ValueError:
        return 0
    if not reader.one_bus or bus or function:
        return 0
    return slot


# --- network ----------------------------------------------------------------------------


def _interface(reader: _Reader, one: Element) -> None:
    mac = child(one, "mac").get("address", "")
    what, remarks = f"network card {mac}", reader.remarks
    kind = one.get("type", "")
    if kind == "hostdev":
        remarks.cannot(what, "a device of the host is in one VM only: give it a bridge instead")
        return
    _told_of_nic(one, what, remarks)
    count = len(reader.to.nics)
    bridge = _bridge(one, kind, what, remarks)
    vlan, trunk = _vlans(one, bridge, what, remarks)
    reader.to.nics.append(
        Nic(
            mac=mac,
            tap=imported.tap_of(reader.vm, count),
            bridge=bridge,
            vlan=vlan,
            trunk=trunk,
            mtu=_mtu(one, what, remarks),
            slot=_slot_of(reader, one),
            queues=_queues(one, what, remarks),
            vhost=_is_virtio(one) and child(one, "driver").get("name") == "vhost",
        )
    )
    reader.to.nic_boots |= _boot_order(one) is not None


def _bridge(one: Element, kind: str, what: str, remarks: Remarks) -> str:
    source = child(one, "source")
    bridge = source.get("bridge", "")
    if child(one, "virtualport").get("type") == "openvswitch":
        text = "was on Open vSwitch: set bridge to a Linux bridge that has a port there"
        remarks.cannot(what, text)
        return SOME_BRIDGE
    if kind == "bridge" and bridge:
        return bridge
    if kind == "network":
        network = source.get("network", "")
        text = f"was in libvirt's network {network!r}: set bridge to a Linux bridge, on both hosts"
        if bridge.startswith("virbr"):
            text += f"; {bridge} and the addresses it gives are of this host alone"
        remarks.note(what, text)
        return bridge or SOME_BRIDGE
    device = source.get("dev") or "it"
    text = f"was {kind}: set bridge to a Linux bridge with {device} as its port"
    remarks.cannot(what, text)
    return SOME_BRIDGE


def _told_of_nic(one: Element, what: str, remarks: Remarks) -> None:
    if not _is_virtio(one):
        model = child(one, "model").get("type", "rtl8139")
        remarks.note(what, f"was {model} and is virtio-net now: the guest needs that driver")
    for tag, text in (
        ("bandwidth", "its bounds of bandwidth are left out"),
        ("filterref", "libvirt's filter is left out: filter on the bridge, on both hosts"),
        ("link[@state='down']", "its link is up now"),
    ):
        if one.find(tag) is not None:
            remarks.note(what, text)


def _vlans(one: Element, bridge: str, what: str, remarks: Remarks) -> tuple[int, list[int]]:
    """What it sends without a tag, and what with one."""
    tags = {number(tag.get("id"), "vlan"): tag for tag in child(one, "vlan").iterfind("tag")}
    if child(one, "vlan").get("trunk") == "yes" or len(tags) > 1:
        native = [vlan for vlan, tag in tags.items() if tag.get("nativeMode") == "untagged"]
    else:
        native = list(tags)
    return imported.vlans_of(native[0] if native else 0, list(tags), bridge, what, remarks)


def _is_virtio(one: Element) -> bool:
    return child(one, "model").get("type") == "virtio"


def _queues(one: Element, what: str, remarks: Remarks) -> int:
    said = number(child(one, "driver").get("queues", "1"), "queues")
    return imported.queues_of(said, what, remarks) if _is_virtio(one) else 1


def _mtu(one: Element, what: str, remarks: Remarks) -> int:
    mtu = number(child(one, "mtu").get("size", "1500"), "mtu")
    if mtu not in _MTUS:
        remarks.cannot(what, f"its MTU of {mtu} became 1500")
        return 1500
    return mtu


# --- the rest ---------------------------------------------------------------------------


def _rng(reader: _Reader, one: Element) -> None:
    reader.to.rng = True
    if child(one, "backend").get("model", "random") != "random":
        reader.remarks.note("rng", "has /dev/urandom of each host for its source")


def _graphics(reader: _Reader, one: Element) -> None:
    kind = one.get("type", "")
    path = imported.socket_of(reader.vm, "vnc")
    reader.remarks.note(f"graphics {kind}", f"VNC on {path} of the host that serves")


def _video(reader: _Reader, one: Element) -> None:
    model = child(one, "model").get("type", "none")
    if model == "none":
        return
    reader.to.vga = True
    if model not in ("vga", "bochs"):
        reader.remarks.note(f"video {model}", "became a standard VGA")


def _input(reader: _Reader, one: Element) -> None:
    if one.get("bus") == "ps2":
        return
    if (one.get("type"), one.get("bus")) == ("tablet", "usb"):
        if "usb-tablet" not in reader.to.extra_args:
            reader.to.extra_args += ["-usb", "-device", "usb-tablet"]
        return
    reader.remarks.note(f"input {one.get('type')} {one.get('bus')}", "is left out")


def _channel(reader: _Reader, one: Element) -> None:
    name = child(one, "target").get("name", "")
    if name != "org.qemu.guest_agent.0":
        reader.remarks.note(f"channel {name}", "is left out")
        return
    path = imported.socket_of(reader.vm, "agent")
    reader.to.extra_args += [
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={path},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=agent,name={name}"),
    ]
    reader.remarks.note(f"channel {name}", f"is on {path}; ask it on the host that serves")


def _serial_port(reader: _Reader, one: Element) -> None:
    if child(one, "target").get("port", "0") != "0":
        reader.remarks.note("serial", "the second serial port and further ones are left out")


_READERS: dict[str, Callable[[_Reader, Element], None]] = {
    "disk": _disk,
    "interface": _interface,
    "rng": _rng,
    "graphics": _graphics,
    "video": _video,
    "input": _input,
    "channel": _channel,
    "serial": _serial_port,
}
