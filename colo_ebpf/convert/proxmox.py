# SPDX-License-Identifier: GPL-2.0-only
"""A VM of Proxmox (`qm showcmd`, and `qm config` for its bridges) as a configuration."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from colo_ebpf.config.schema import Disk, Nic, VmTable
from colo_ebpf.convert import imported
from colo_ebpf.convert.imported import MOST_BYTES, Imported, Remarks, words
from colo_ebpf.errors import ConfigError

_BRIDGE = "vmbr0"  # where it is not known
_FLAGS = words(
    "-daemonize -no-shutdown -nodefaults -S -usb -no-reboot -enable-kvm -no-hpet -no-acpi"
)
_QUIET = words(
    "-id -name -no-shutdown -daemonize -pidfile -mon -nodefaults -boot -smp -m -cpu -machine -vnc "
    "-k -rtc -chardev -iscsi -global -msg -D -pid -sandbox -runas -readconfig -vga -no-hpet -usb "
    "-enable-kvm -uuid -smbios -kernel -initrd -append -drive -blockdev -netdev -device -object "
    "-S -spice -serial"
)
_DISKS = frozenset(("virtio-blk-pci", "scsi-hd", "ide-hd", "scsi-block", "nvme"))
_DRIVES = frozenset(("ide-cd", "scsi-cd"))
_NICS = frozenset(("virtio-net-pci", "e1000", "e1000e", "rtl8139", "vmxnet3", "ne2k_pci", "pcnet"))
_DISPLAYS = frozenset(("VGA", "qxl-vga", "virtio-vga", "virtio-gpu", "cirrus-vga", "vmware-svga"))
_DEVICES_QUIET = words(
    "pci-bridge piix3-usb-uhci ich9-usb-ehci1 qemu-xhci nec-usb-xhci virtio-scsi-pci lsi megasas "
    "ahci virtio-serial virtio-serial-pci pvpanic virtserialport pcie-root-port usb-kbd "
    "virtio-scsi-single virtserialbus"
)
_LOST = {
    "vfio-pci": "a device of the host is in one VM only: take it out of the guest",
    "usb-host": "a device of the host is in one VM only: take it out of the guest",
    "ivshmem-plain": "memory shared with the host cannot be equal on two hosts",
    "tpm-tis": "its state is outside of QEMU: suspend BitLocker or the like, then do without it",
    "floppy": "its medium is ejected; what the guest needs of it may be a disk",
    "nvdimm": "memory modules are left out: vm.memory-mib is all that there is",
    "pc-dimm": "memory modules are left out: vm.memory-mib is all that there is",
}
_LEFT_OUT = {
    "virtio-balloon-pci": "is left out: the guest has vm.memory-mib at all times",
    "vmgenid": "is left out: no checkpoint is a clone of a VM",
}
_HOW = "`qm config` tells of the bridge: set it to a Linux bridge, on both hosts"


@dataclass(frozen=True, slots=True)
class _Device:
    driver: str
    keys: dict[str, str]

    @property
    def slot(self) -> int:
        """Its place on the first bus; 0: elsewhere."""
        match = re.fullmatch(r"0x([0-9a-f]{1,2})|([0-9]{1,2})", self.keys.get("addr", ""))
        if match is None or self.keys.get("bus") != "pci.0":
            return 0
        return int(match[1], 16) if match[1] else int(match[2])


@dataclass(frozen=True, slots=True)
class _Image:
    path: str
    format: str
    cdrom: bool = False
    readonly: bool = False


def imported_from(command: str, configured: str, release: tuple[int, int] | None) -> Imported:
    """`command`: what `qm showcmd` prints; `configured`: what `qm config` does, or nothing.

    `release`: of this host's QEMU. ConfigError if nothing can be made of it.
    """
    said = _options(command)
    remarks = Remarks()
    name = imported.name_of(_first(said, "-name", "guest")[0], remarks)
    machine, keys = _first(said, "-machine", "type")
    machine = imported.machine_of(machine.partition("+pve")[0], release, remarks)
    hpet = ",hpet=off" if keys.get("hpet") == "off" or "-no-hpet" in dict(said) else ""
    devices = [_device(value) for option, value in said if option == "-device"]
    disks, orders = _disks(said, devices, name, remarks)
    nics = _nics(said, devices, configured, name, remarks)
    imported.require(nics, disks, remarks)
    vga = any(one.driver in _DISPLAYS for one in devices) or "-vga" in dict(said)
    nics, disks = imported.placed(nics, imported.in_order(disks, orders), vga, remarks)
    firmware, variables = _firmware(said, name, remarks)
    smbios, uuid = _smbios(said)
    tablet = any(one.driver == "usb-tablet" for one in devices)
    agent = _agent(devices, name, remarks)
    _others(said, devices, remarks)
    return Imported(
        VmTable(
            name=name,
            nic=nics,
            disk=disks,
            memory_mib=_number(_first(said, "-m", "size")[0].removesuffix("M"), "-m"),
            cpus=_number(_first(said, "-smp", "cpus", "1")[0], "-smp"),
            accel="tcg" if keys.get("accel") == "tcg" else "kvm",
            machine=machine + hpet,
            cpu=next((value for option, value in said if option == "-cpu"), ""),
            firmware=firmware,
            firmware_vars=variables,
            uuid=uuid,
            clock="localtime" if ("-rtc", "base=localtime") in said else "utc",
            rng=any(one.driver == "virtio-rng-pci" for one in devices),
            vga=vga,
            extra_args=[*(("-usb", "-device", "usb-tablet") if tablet else ()), *agent, *smbios],
        ),
        imported.once(remarks),
    )


# --- the command line -------------------------------------------------------------------


def _options(command: str) -> list[tuple[str, str]]:
    if len(command) > MOST_BYTES:
        raise ConfigError(f"more than {MOST_BYTES} characters are no command line of QEMU's")
    try:
        said = shlex.split(command.replace("\\\n", " "))
    except ValueError as e:
        raise ConfigError(f"not a command line: {e}") from e
    if not said or not said[0].endswith(("kvm", "qemu-system-x86_64")):
        raise ConfigError("no command line of QEMU for x86_64: `qm showcmd VMID` prints one")
    found, rest = [], said[1:]
    while rest:
        option = rest.pop(0)
        if not option.startswith("-"):
            raise ConfigError(f"{option[:40]!r} is no option of QEMU's")
        option = option.removeprefix("-") if option.startswith("--") else option
        value = "" if option in _FLAGS or not rest else rest.pop(0)
        found.append((option, value))
    return found


def _keys(value: str, implied: str) -> dict[str, str]:
    """Of QEMU's list of keys; the first may go without its name, and ",," is a comma."""
    found = {}
    parts = re.split(r"(?<!,),(?!,)", value)
    for number, part in enumerate(parts):
        key, is_key, said = part.replace(",,", ",").partition("=")
        if number == 0 and not is_key:
            key, said = implied, key
        found[key] = said
    return found


def _first(
    said: list[tuple[str, str]], option: str, key: str, default: str = ""
) -> tuple[str, dict[str, str]]:
    """A key of the first such option, and all of that option's."""
    for one, value in said:
        if one == option:
            keys = _keys(value, key)
            return keys.get(key, default), keys
    return default, {}


def _number(said: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", said):
        raise ConfigError(f"{what}: {said[:40]!r} is no number")
    return int(said)


def _device(value: str) -> _Device:
    keys = _json(value) if value.startswith("{") else _keys(value, "driver")
    return _Device(str(keys.get("driver", "")), {k: str(v) for k, v in keys.items()})


def _json(value: str) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"not valid JSON: {value[:40]!r}") from e
    if not isinstance(found, dict):
        raise ConfigError(f"not an object: {value[:40]!r}")
    return found


# --- disks ------------------------------------------------------------------------------


def _images(said: list[tuple[str, str]]) -> dict[str, _Image]:
    found = {}
    for option, value in said:
        if option == "-drive":
            keys = _keys(value, "file")
            cdrom = keys.get("media") == "cdrom"
            found[keys.get("id", "")] = _Image(
                keys.get("file", ""), keys.get("format", "raw"), cdrom, _is_on(keys, "readonly")
            )
        elif option == "-blockdev" and value.startswith("{"):
            node = _json(value)
            found[str(node.get("node-name", ""))] = _node(node)
    return found


def _node(node: dict[str, Any]) -> _Image:
    """A format over a file or a device, below filters and throttles."""
    kind, depth, readonly = "raw", 0, node.get("read-only") is True
    while isinstance(node.get("file"), dict) and depth < 16:
        driver = str(node.get("driver", "raw"))
        kind = driver if driver not in ("throttle", "copy-on-read", "raw") else kind
        node, depth = node["file"], depth + 1
    known = node.get("driver") in ("file", "host_device")
    path = str(node.get("filename", "")) if known else f"{node.get('driver')}:"
    return _Image(path, kind, readonly=readonly)


def _is_on(keys: dict[str, str], key: str) -> bool:
    return keys.get(key) in ("on", "yes", "true")


def _disks(
    said: list[tuple[str, str]], devices: list[_Device], name: str, remarks: Remarks
) -> tuple[list[Disk], list[int | None]]:
    images = _images(said)
    controllers = frozenset(
        f"{one.keys.get('id')}.0" for one in devices if one.driver == "virtio-scsi-pci"
    )
    disks: list[Disk] = []
    orders: list[int | None] = []
    for one in devices:
        what = f"disk {one.keys.get('id', one.driver)}"
        image = images.get(one.keys.get("drive", ""), _Image("", "raw"))
        is_drive = one.driver in _DRIVES or image.cdrom
        if is_drive and not image.path:
            remarks.note(what, "is an empty drive, and left out")
        elif not is_drive and one.driver not in _DISKS:
            continue
        elif why := _not_a_disk(image, "raw" if is_drive else "qcow2"):
            remarks.cannot(what, why)
        else:
            order = one.keys.get("bootindex")
            orders.append(None if order is None else _number(order, "bootindex"))
            if is_drive:
                bus = one.keys.get("bus", one.driver)
                disks.append(imported.cdrom(image.path, bus, what, remarks))
                continue
            disks.append(_disk(one, image, controllers, name))
            _told_of_disk(one, disks[-1], image, what, remarks)
    return disks, orders


def _disk(one: _Device, image: _Image, controllers: frozenset[str], name: str) -> Disk:
    readonly = image.readonly and image.format == "raw"
    on_scsi = one.driver == "scsi-hd" and one.keys.get("bus") in controllers and not readonly
    return Disk(
        path=image.path,
        overlay_dir="" if readonly else imported.overlays_of(name),
        format=image.format,
        bus="virtio-scsi" if on_scsi else "virtio-blk",
        readonly=readonly,
        slot=one.slot if one.driver == "virtio-blk-pci" else 0,
    )


def _not_a_disk(image: _Image, best: str) -> str:
    """Why it cannot be carried over; empty if it can. `best`: a format that could."""
    if not image.path.startswith("/"):
        at = image.path.partition(":")[0] or "nothing"
        return f"{at}: a disk is a file or a block device; map it to one (`krbd 1`), or copy it"
    if image.format not in ("raw", best):
        return f"{image.format}: convert it, `qemu-img convert -O {best} {image.path} NEW`"
    return ""


def _told_of_disk(one: _Device, disk: Disk, image: _Image, what: str, remarks: Remarks) -> None:
    if image.readonly and not disk.readonly:
        text = "was read-only and can be written now: make it raw (qemu-img convert), and readonly"
        remarks.cannot(what, text)
    if disk.bus == "virtio-blk" and one.driver != "virtio-blk-pci":
        text = (
            f"was {one.driver} and is virtio-blk now: the guest needs that driver when it boots, "
            "and has to find its file systems by UUID or label"
        )
        remarks.note(what, text)


# --- network ----------------------------------------------------------------------------


def _bridges(configured: str) -> dict[str, dict[str, str]]:
    """What `qm config` says of each NIC, by MAC."""
    found = {}
    for match in re.finditer(r"^net\d+: (\S+)$", configured, re.MULTILINE):
        keys = _keys(match[1], "model")
        mac = next((v for v in keys.values() if re.fullmatch(r"(\w\w:){5}\w\w", v)), "")
        found[mac.lower()] = keys
    return found


def _trunk(known: dict[str, str]) -> list[int]:
    """As Proxmox writes it: `2;5-7`."""
    found: list[int] = []
    for part in filter(None, known.get("trunks", "").split(";")):
        first, _, last = part.partition("-")
        numbers = _number(first, "trunks"), _number(last or first, "trunks")
        found += range(numbers[0], min(numbers[1], numbers[0] + imported.MOST_VLANS) + 1)
    return found


def _netdevs(said: list[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Their keys, by name."""
    found = [_keys(value, "type") for option, value in said if option == "-netdev"]
    return {keys.get("id", ""): keys for keys in found}


def _queues(one: _Device, netdev: dict[str, str], what: str, remarks: Remarks) -> int:
    if one.driver != "virtio-net-pci" or not _is_on(one.keys, "mq"):
        return 1
    return imported.queues_of(_number(netdev.get("queues", "1"), "queues"), what, remarks)


def _nics(
    said: list[tuple[str, str]],
    devices: list[_Device],
    configured: str,
    name: str,
    remarks: Remarks,
) -> list[Nic]:
    bridges, netdevs = _bridges(configured), _netdevs(said)
    nics: list[Nic] = []
    for one in devices:
        if one.driver not in _NICS:
            continue
        mac = one.keys.get("mac", "").lower()
        what = f"network card {mac}"
        known = bridges.get(mac, {})
        _told_of_nic(one, known, what, remarks)
        if "bridge" not in known:
            remarks.note(what, _HOW)
        mtu, bridge = one.keys.get("host_mtu", "1500"), known.get("bridge", _BRIDGE)
        tag = _number(known.get("tag", "0"), "tag")
        vlan, trunk = imported.vlans_of(tag, _trunk(known), bridge, what, remarks)
        nics.append(
            Nic(
                mac=mac,
                tap=imported.tap_of(name, len(nics)),
                bridge=bridge,
                vlan=vlan,
                trunk=trunk,
                mtu=_number(mtu, "host_mtu"),
                slot=one.slot,
                queues=_queues(one, netdevs.get(one.keys.get("netdev", ""), {}), what, remarks),
            )
        )
    return nics


def _told_of_nic(one: _Device, known: dict[str, str], what: str, remarks: Remarks) -> None:
    if one.driver != "virtio-net-pci":
        remarks.note(what, f"was {one.driver} and is virtio-net now: the guest needs that driver")
    if known.get("firewall") == "1":
        remarks.note(what, "Proxmox' firewall is left out: filter on the bridge, on both hosts")


# --- the rest ---------------------------------------------------------------------------


def _firmware(said: list[tuple[str, str]], name: str, remarks: Remarks) -> tuple[str, str]:
    flashes = [keys for o, v in said if o == "-drive" and (keys := _keys(v, "file"))]
    flashes = [keys for keys in flashes if keys.get("if") == "pflash"]
    by_unit = {keys.get("unit", "0"): keys.get("file", "") for keys in flashes}
    if "0" not in by_unit:
        if any(option == "-blockdev" and "OVMF" in value for option, value in said):
            text = "name OVMF_CODE_4M.fd in vm.firmware and a raw copy of the EFI disk beside it"
            remarks.cannot("UEFI firmware", text)
        return "", ""
    new = f"/var/lib/colo-ebpf/{name}_VARS.fd"
    old = by_unit.get("1", "the EFI disk")
    text = f"`qemu-img convert -O raw {old} {new}` while the guest is off, on both hosts"
    remarks.note("UEFI variables", text)
    return by_unit["0"], new


def _smbios(said: list[tuple[str, str]]) -> tuple[list[str], str]:
    """What goes on as it is, and the UUID."""
    kept: list[str] = []
    uuid = next((value for option, value in said if option == "-uuid"), "")
    for option, value in said:
        if option != "-smbios":
            continue
        keys = _keys(value, "type")
        if keys.get("type") == "1":
            uuid = keys.pop("uuid", uuid)
        if len(keys) > 1:
            parts = (f"{key}={part.replace(',', ',,')}" for key, part in keys.items())
            kept += ["-smbios", ",".join(parts)]
    return kept, uuid


def _agent(devices: list[_Device], name: str, remarks: Remarks) -> Iterator[str]:
    agent = "org.qemu.guest_agent.0"
    if not any(one.keys.get("name") == agent for one in devices):
        return
    path = imported.socket_of(name, "agent")
    remarks.note(f"channel {agent}", f"is on {path}; ask it on the host that serves")
    yield from ("-device", "virtio-serial-pci")
    yield from ("-chardev", f"socket,id=agent,path={path},server=on,wait=off")
    yield from ("-device", f"virtserialport,chardev=agent,name={agent}")


def _others(said: list[tuple[str, str]], devices: list[_Device], remarks: Remarks) -> None:
    """What nothing above has read."""
    known = _DISKS | _DRIVES | _NICS | _DISPLAYS | _DEVICES_QUIET | {"usb-tablet", "virtio-rng-pci"}
    for one in devices:
        if one.driver in _LOST:
            remarks.cannot(f"device {one.driver}", _LOST[one.driver])
        elif one.driver not in known:
            text = _LEFT_OUT.get(one.driver, "is not known here, and left out")
            remarks.note(f"device {one.driver}", text)
    for option, value in said:
        if option == "-numa":
            remarks.cannot("NUMA", "the guest has one node")
        elif option not in _QUIET:
            remarks.note(f"{option} {value}".strip(), "is not known here, and left out")
