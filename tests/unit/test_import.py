# SPDX-License-Identifier: GPL-2.0-only
"""VMs of libvirt and Proxmox become configurations; what cannot is told, and nothing is half."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo_ebpf.config.reading import parse_config
from colo_ebpf.convert import configuration, domain, proxmox, strict_xml
from colo_ebpf.convert.imported import MOST_BYTES, Imported, Weight
from colo_ebpf.errors import ConfigError

VMS = Path(__file__).with_name("vms")
WEB = (VMS / "web.xml").read_bytes()
MAIL, MAIL_CONFIG = ((VMS / name).read_text() for name in ("101.cmd", "101.conf"))
DISK = """<disk type='file'><driver type='raw'/><source file='/web.raw'/>
<target dev='vda' bus='virtio'/></disk>"""
NIC = """<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/>
<model type='virtio'/></interface>"""
SMALL = f"""<domain type='kvm'><name>web</name><memory unit='MiB'>512</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{DISK}{NIC}</devices></domain>"""


def _libvirt(text: str | bytes, release: tuple[int, int] | None = (7, 2)) -> Imported:
    data = text.encode() if isinstance(text, str) else text
    return domain.imported_from(strict_xml.element(data), release)


def _said(found: Imported, weight: Weight = Weight.NOTE) -> str:
    return "\n".join(one.line() for one in found.remarks if one.weight is weight)


# --- libvirt ------------------------------------------------------------------------------


def test_a_small_domain_loses_nothing() -> None:
    found = _libvirt(SMALL)
    assert found.remarks == ()
    text = configuration.text(found.vm, Path("web.toml"))
    vm = parse_config(text, Path("web.toml")).vm
    assert (vm.name, vm.memory_mib, vm.cpus, vm.cpu) == ("web", 512, 1, "qemu64")
    assert (vm.disk[0].path, vm.nic[0].bridge) == ("/web.raw", "br0")
    assert 'run-dir = "/run/colo-ebpf/web"' in text


def test_what_a_large_domain_has_is_carried_over() -> None:
    vm = parse_config(configuration.text(_libvirt(WEB).vm, Path("w")), Path("w")).vm
    assert (vm.name, vm.memory_mib, vm.cpus, vm.clock) == ("web-shop", 4096, 2, "localtime")
    assert (vm.rng, vm.vga, vm.machine) == (True, True, "pc-i440fx-7.2,hpet=off")
    flags = "+vmx,-hle,hv_relaxed,hv_vapic,hv_spinlocks=8191,hv_time"
    assert vm.cpu == f"Haswell-noTSX,{flags}"
    assert vm.firmware_vars == "/var/lib/colo-ebpf/web-shop_VARS.fd"
    assert [nic.slot for nic in vm.nic] == [3, 4, 31]
    assert [(disk.slot, disk.boot_order) for disk in vm.disk] == [(7, 2), (30, 1), (0, 0)]
    assert [(nic.queues, nic.vhost) for nic in vm.nic] == [(4, True), (1, False), (1, False)]
    seed = vm.disk[2]
    assert (seed.path, seed.bus, seed.readonly, seed.overlay_dir) == (
        "/var/lib/libvirt/images/seed.iso",
        "virtio-scsi",
        True,
        "",
    )
    assert (vm.disk[0].serial, vm.disk[1].sector_bytes, vm.nic[0].mtu) == ("system-1", 4096, 9000)
    assert "type=1,manufacturer=Acme,, Inc,serial=ds=nocloud" in vm.extra_args
    assert "path=/run/colo-ebpf/web-shop/qemu/agent.sock" in " ".join(vm.extra_args)


@pytest.mark.parametrize(
    "line",
    [
        "CANNOT hostdev pci: a device of the host is in one VM only: take it out of the guest",
        "CANNOT disk vdb: rbd: a disk is a file or a block device; map it to one, or copy it",
        "CANNOT network card 52:54:00:aa:bb:03: was direct: set bridge to a Linux bridge with eth1",
        "CANNOT network card 52:54:00:aa:bb:04: a device of the host is in one VM only",
        "CANNOT tpm tpm-crb: its state is outside of QEMU",
        "CANNOT QEMU's command line '-d int': is left out",
        "NOTE name 'web shop': became 'web-shop'",
        "NOTE UEFI variables: `cp /var/lib/libvirt/qemu/nvram/web_VARS.fd /var/lib/colo-ebpf/web-",
        "NOTE disk sda: was on scsi and is virtio-blk now: the guest needs that driver",
        "NOTE disk vda: discard is not passed on",
        "NOTE cdrom sdb: is empty, and left out",
        "NOTE cdrom sdc: was on sata and is a CD-ROM on virtio-scsi now: the guest needs that ",
        "NOTE network card 52:54:00:aa:bb:02: was in libvirt's network 'default'",
        "NOTE network card 52:54:00:aa:bb:02: was e1000 and is virtio-net now",
        "NOTE frobnicator x: is not known here, and left out",
        "NOTE cputune: ",
        "NOTE hyperv evmcs: is left out",
        "NOTE cpu feature pdcm: its policy optional is left out",
    ],
)
def test_what_is_not_as_it_was_is_told(line: str) -> None:
    told = [one.line() for one in _libvirt(WEB).remarks]
    assert [one for one in told if one.startswith(line)], "\n".join(told)


def test_what_the_guest_loses_comes_first() -> None:
    weights = [one.weight for one in _libvirt(WEB).remarks]
    assert weights == sorted(weights, key=lambda weight: weight is Weight.NOTE)


SCSI = SMALL.replace("bus='virtio'/></disk>", "bus='scsi'/></disk>").replace(
    "<devices>", "<devices><controller type='scsi' index='0' model='virtio-scsi'/>"
)
SEED = """<disk type='file' device='cdrom'><driver type='raw'/><source file='/seed.iso'/>
<target dev='sda' bus='ide'/><readonly/></disk>"""


def test_a_disk_on_virtio_scsi_stays_there() -> None:
    found = _libvirt(SCSI)
    (disk,) = found.vm.disk
    assert (disk.bus, disk.slot, found.remarks) == ("virtio-scsi", 0, ())
    for other in (
        SCSI.replace("model='virtio-scsi'", "model='lsilogic'"),
        SCSI.replace("</disk>", "<address type='drive' controller='1'/></disk>"),
    ):
        found = _libvirt(other)
        assert found.vm.disk[0].bus == "virtio-blk"
        assert "was on scsi and is virtio-blk now" in _said(found)


@pytest.mark.parametrize("first", [SMALL, SCSI])
def test_a_disk_that_was_read_only_stays_so(first: str) -> None:
    second = DISK.replace("/web.raw'/>", "/ro'/><readonly/>").replace("vda", "vdb")
    if first is SCSI:
        second = second.replace("'virtio'", "'scsi'")
    found = _libvirt(first.replace("<interface", f"{second}<interface"))
    disk = found.vm.disk[1]
    assert (disk.path, disk.readonly, disk.bus) == ("/ro", True, "virtio-blk")
    assert disk.overlay_dir == ""
    assert _said(found, Weight.CANNOT) == ""


def test_a_cd_rom_comes_after_the_disks_it_is_not_to_be_booted_before() -> None:
    text = SMALL.replace(DISK, SEED + DISK)
    vm = parse_config(configuration.text(_libvirt(text).vm, Path("x")), Path("x")).vm
    assert [disk.path for disk in vm.disk] == ["/web.raw", "/seed.iso"]
    booted = text.replace("<readonly/>", "<readonly/><boot order='1'/>")
    booted = booted.replace("bus='virtio'/></disk>", "bus='virtio'/><boot order='2'/></disk>")
    assert [disk.boot_order for disk in _libvirt(booted).vm.disk] == [2, 1]


def test_vlans_of_a_bridge_are_kept() -> None:
    one = "<vlan><tag id='42'/></vlan></interface>"
    found = _libvirt(SMALL.replace("</interface>", one))
    assert (found.vm.nic[0].vlan, found.vm.nic[0].trunk) == (42, [])
    assert "is in its VLANs if br0 filters them on both hosts: ip link set br0 type" in _said(found)
    several = (
        "<vlan trunk='yes'><tag id='7'/><tag id='9' nativeMode='untagged'/></vlan></interface>"
    )
    nic = _libvirt(SMALL.replace("</interface>", several)).vm.nic[0]
    assert (nic.vlan, nic.trunk) == (9, [7])


def test_q35_needs_qemu_11() -> None:
    text = SMALL.replace("machine='pc'", "machine='pc-q35-7.2'")
    old = _libvirt(text)
    assert old.vm.machine == "pc"
    assert "QEMU before 11 may crash" in _said(old, Weight.CANNOT)
    assert "QEMU before 11 may crash" in _said(_libvirt(text, None), Weight.CANNOT)
    new = _libvirt(text, (11, 0))
    assert new.vm.machine == "pc-q35-7.2"
    assert _said(new, Weight.CANNOT) == ""


def test_addresses_on_the_buses_of_q35_say_nothing_on_pc() -> None:
    slot = "<address type='pci' bus='0x00' slot='0x05' function='0x0'/></interface>"
    text = SMALL.replace("</interface>", slot)
    assert _libvirt(text).vm.nic[0].slot == 5
    assert _libvirt(text.replace("'pc'", "'q35'")).vm.nic[0].slot == 0


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("<os>", "<os firmware='efi'>", "CANNOT UEFI firmware: libvirt has not chosen its image"),
        ("</os>", "<boot dev='network'/></os>", "NOTE boot from the network: the NICs have no"),
        ("</devices>", "<filesystem type='mount'/></devices>", "CANNOT filesystem mount: "),
        ("<source bridge='br0'/>", "<source bridge='b'/><virtualport type='openvswitch'/>", "CANN"),
        ("</disk>", "<shareable/></disk>", "CANNOT disk vda: was shared"),
        ("'raw'/>", "'qcow2'/><readonly/>", "CANNOT disk vda: was read-only and can be written"),
        (DISK, SEED.replace("'cdrom'", "'floppy'") + DISK, "CANNOT floppy sda: its medium is"),
        (DISK, SEED.replace("'raw'", "'qcow2'") + DISK, "CANNOT cdrom sda: qcow2: convert it"),
        (DISK, SEED.replace("'file' d", "'network' d") + DISK, "CANNOT cdrom sda: network: "),
        (
            "</interface>",
            "<driver queues='16'/></interface>",
            "NOTE network card 52:54:00:00:00:01",
        ),
        ("</interface>", "<vlan><tag id='5000'/></vlan></interface>", "CANNOT network card 52:54"),
        ("</disk>", "<iotune/></disk>", "NOTE disk vda: its limits of I/O"),
        (
            "</disk>",
            "<backingStore><source file='/b'/></backingStore></disk>",
            "NOTE disk vda: has",
        ),
        ("</disk>", "<blockio logical_block_size='2048'/></disk>", "CANNOT disk vda: had sectors"),
        (
            "</interface>",
            "<mtu size='65000'/></interface>",
            "CANNOT network card 52:54:00:00:00:01",
        ),
        ("<os>", "<launchSecurity type='sev'/><os>", "CANNOT launchSecurity: encrypted memory"),
        ("<os>", "<cpu mode='host-passthrough'/><os>", "NOTE cpu host-passthrough: the host's own"),
        ("<os>", "<clock offset='variable' basis='utc'/><os>", "NOTE clock variable: "),
        ("<os>", "<vcpu current='1'>4</vcpu><os>", "NOTE vcpu: the guest has 1 for good"),
        ("machine='pc'", "machine='microvm'", "CANNOT machine microvm: became pc"),
    ],
)
def test_each_of_these_is_told(old: str, new: str, line: str) -> None:
    assert old in SMALL
    told = [one.line() for one in _libvirt(SMALL.replace(old, new)).remarks]
    assert [one for one in told if one.startswith(line)], told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid XML: no element found"),
        ("<domain", "not valid XML: unclosed token"),
        ("{}", "not valid XML: not well-formed"),
        ("<network/>", "<network> is no domain"),
        ("<domain type='xen'/>", "a domain of type 'xen': only kvm and qemu are QEMU's"),
        (SMALL.replace("x86_64", "aarch64"), "a guest for aarch64"),
        (SMALL.replace("512</memory>", "much</memory>"), "memory: 'much' is no number"),
        (SMALL.replace("MiB", "MiBs"), "memory in 'MiBs': no such unit"),
        (SMALL.replace("<name>web</name>", "<name>!!</name>"), "'!!' has no letter"),
        (SMALL.replace(DISK, ""), "no disk that it can write to is left for the VM: it has none"),
        (SMALL.replace(DISK, SEED), "no disk that it can write to is left for the VM: it has none"),
        (SMALL.replace("'file'", "'network'"), "to is left for the VM: CANNOT disk vda: netw"),
        (SMALL.replace(NIC, ""), "no network card is left for the VM: it has none"),
        (SMALL.replace(NIC, NIC * 9), "it has 9 network cards, and a protected VM at most 8"),
        ("<?xml version='1.0' encoding='klingon'?><domain/>", "not valid XML: unknown encoding"),
        ("<a>" * 300 + "</a>" * 300, "nested more than 256 deep"),
        ("<domain>" + " " * MOST_BYTES + "</domain>", "is no domain"),
    ],
)
def test_what_is_no_domain_gets_one_sentence(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        _libvirt(text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "doctype",
    [
        "<!DOCTYPE d [<!ENTITY a 'x'><!ENTITY b '&a;&a;'>]>",
        "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/shadow'>]>",
        "<!DOCTYPE d SYSTEM 'http://192.0.2.1/d.dtd'>",
        "<!DOCTYPE d [<!ENTITY % p SYSTEM 'file:///etc/shadow'> %p;]>",
    ],
)
def test_entities_are_not_even_read(doctype: str) -> None:
    with pytest.raises(ConfigError, match="XML with a DOCTYPE is not read"):
        _libvirt(f"{doctype}{SMALL.replace('web.raw', '&a;')}")


def test_what_a_file_says_is_no_second_line() -> None:
    text = SMALL.replace("</devices>", "<x model='&#10;CANNOT y&#9;&#x9b;31m'/></devices>")
    assert [one.line() for one in _libvirt(text).remarks] == [
        "NOTE x ?CANNOT y??31m: is not known here, and left out"
    ]


_PIECES = st.sampled_from(
    ["<disk>", "</disk>", "<a/>", "'", '"', "type='block'", "0x", "\0", "&#1;", "é", "9" * 30, ""]
)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, len(WEB) - 1), cut=st.integers(0, 200), piece=_PIECES)
def test_any_domain_is_imported_or_refused(at: int, cut: int, piece: str) -> None:
    try:
        found = _libvirt(WEB[:at] + piece.encode() + WEB[at + cut :])
        text = configuration.text(found.vm, Path("x"))
    except ConfigError as e:
        assert str(e)
    else:
        parse_config(text, Path("x"))


# --- Proxmox ------------------------------------------------------------------------------


def test_what_proxmox_runs_is_carried_over() -> None:
    found = proxmox.imported_from(MAIL, MAIL_CONFIG, (7, 2))
    vm = parse_config(configuration.text(found.vm, Path("m")), Path("m")).vm
    assert (vm.name, vm.memory_mib, vm.cpus, vm.clock, vm.vga) == (
        "mail",
        4096,
        4,
        "localtime",
        True,
    )
    assert vm.machine == "pc-i440fx-9.0,hpet=off"
    assert vm.uuid == "2f1c7a90-0a6e-4a6b-8b53-0f4a7a1f6f10"
    assert [(nic.mac, nic.bridge, nic.slot) for nic in vm.nic] == [
        ("bc:24:11:00:00:01", "vmbr0", 0x12),
        ("bc:24:11:00:00:02", "vmbr1", 0x13),
    ]
    assert [(nic.queues, nic.vlan) for nic in vm.nic] == [(4, 0), (1, 30)]
    assert [(disk.path, disk.format, disk.boot_order, disk.slot) for disk in vm.disk] == [
        ("/dev/pve/vm-101-disk-0", "raw", 2, 0),
        ("/var/lib/vz/images/101/vm-101-disk-1.qcow2", "qcow2", 1, 0xB),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "CANNOT disk virtio2: rbd: a disk is a file or a block device",
        "CANNOT device vfio-pci: a device of the host is in one VM only",
        "NOTE network card bc:24:11:00:00:02: is in its VLANs if vmbr1 filters them",
        "NOTE network card bc:24:11:00:00:01: Proxmox' firewall is left out",
        "NOTE disk ide2: is an empty drive, and left out",
        "NOTE -frobnicate yes: is not known here, and left out",
        "NOTE device vmgenid: is left out",
    ],
)
def test_what_is_not_as_it_was_on_proxmox_is_told(line: str) -> None:
    told = [one.line() for one in proxmox.imported_from(MAIL, MAIL_CONFIG, (7, 2)).remarks]
    assert [one for one in told if one.startswith(line)], "\n".join(told)


def test_disks_of_proxmox_keep_their_kind() -> None:
    vm = proxmox.imported_from(MAIL, MAIL_CONFIG, (7, 2)).vm
    assert [disk.bus for disk in vm.disk] == ["virtio-scsi", "virtio-blk"]
    found = proxmox.imported_from(MAIL.replace("virtio-scsi-pci", "lsi"), "", (7, 2))
    assert "NOTE disk scsi0: was scsi-hd and is virtio-blk now" in _said(found)
    seed = MAIL.replace("if=none,id=drive-ide2", "file=/dev/pve/seed,if=none,id=drive-ide2")
    seed = seed.replace("unit=0,id=ide2", "unit=0,drive=drive-ide2,id=ide2")
    found = proxmox.imported_from(seed, "", (7, 2))
    last = parse_config(configuration.text(found.vm, Path("m")), Path("m")).vm.disk[-1]
    assert (last.path, last.bus, last.readonly, last.boot_order) == (
        "/dev/pve/seed",
        "virtio-scsi",
        True,
        2,
    )
    assert "NOTE disk ide2: was on ide.1 and is a CD-ROM on virtio-scsi now" in _said(found)
    told = _said(
        proxmox.imported_from(seed.replace("media=cdrom", "media=cdrom,format=vmdk"), "", None),
        Weight.CANNOT,
    )
    assert "CANNOT disk ide2: vmdk: convert it, `qemu-img convert -O raw /dev/pve/seed NEW`" in told


@pytest.mark.parametrize(
    ("option", "readonly", "told"),
    [("format=raw,readonly=on", True, ""), ("format=qcow2,readonly=on", False, "was read-only")],
)
def test_a_disk_of_proxmox_that_was_read_only(option: str, readonly: bool, told: str) -> None:
    text = MAIL.replace("id=drive-scsi0,format=raw", f"id=drive-scsi0,{option}")
    found = proxmox.imported_from(text, "", (7, 2))
    assert found.vm.disk[0].readonly is readonly
    assert (found.vm.disk[0].overlay_dir == "") is readonly
    assert told in _said(found, Weight.CANNOT)


def test_vlans_of_proxmox_that_the_guest_tags() -> None:
    text = MAIL_CONFIG.replace("tag=30", "tag=30,trunks=2;30;5-7")
    nic = proxmox.imported_from(MAIL, text, None).vm.nic[1]
    assert (nic.vlan, nic.trunk) == (30, [2, 5, 6, 7])
    found = proxmox.imported_from(MAIL, MAIL_CONFIG.replace("tag=30", "trunks=1-4094"), None)
    assert "its VLANs are left out" in _said(found, Weight.CANNOT)


def test_uefi_of_proxmox() -> None:
    flash = (
        " -drive 'if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/pve/OVMF_CODE.fd'"
        " -drive 'if=pflash,unit=1,id=drive-efidisk0,format=raw,file=/dev/pve/vm-101-disk-9'"
    )
    found = proxmox.imported_from(MAIL.strip() + flash, "", (7, 2))
    assert found.vm.firmware == "/usr/share/pve/OVMF_CODE.fd"
    assert "`qemu-img convert -O raw /dev/pve/vm-101-disk-9 /var/lib/colo-ebpf/" in _said(found)
    assert "`qm config` tells of the bridge" in _said(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no command line of QEMU for x86_64"),
        ("rm -rf /", "no command line of QEMU for x86_64"),
        ("kvm 'unclosed", "not a command line: No closing quotation"),
        ("kvm web", "'web' is no option of QEMU's"),
        ("kvm -name web", "no disk is left|no network card is left"),
        ("kvm -name web -device '{'", "not valid JSON"),
        ("kvm -name web -device []", "no network card is left"),
        (MAIL.replace("-m 4096", "-m lots"), "-m: 'lots' is no number"),
        ("kvm " + "x" * MOST_BYTES, "are no command line"),
    ],
)
def test_what_is_no_command_line_gets_one_sentence(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        proxmox.imported_from(text, "", None)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, len(MAIL) - 1), cut=st.integers(0, 200), piece=_PIECES)
def test_any_command_line_is_imported_or_refused(at: int, cut: int, piece: str) -> None:
    try:
        found = proxmox.imported_from(MAIL[:at] + piece + MAIL[at + cut :], MAIL_CONFIG, None)
        text = configuration.text(found.vm, Path("x"))
    except ConfigError as e:
        assert str(e)
    else:
        parse_config(text, Path("x"))
