# SPDX-License-Identifier: GPL-2.0-only
"""A domain of libvirt (`virsh dumpxml`) as a configuration. What is not known here is told, too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from colo_ebpf.config.schema import VmTable
from colo_ebpf.convert import domain_devices, imported
from colo_ebpf.convert.domain_devices import Devices, child, number
from colo_ebpf.convert.imported import Imported, Remarks, words
from colo_ebpf.errors import ConfigError

_ACCELERATORS = {"kvm": "kvm", "qemu": "tcg"}
_UNITS = {
    "b": 1,
    "bytes": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)},
    **{prefix: 1024**power for power, prefix in enumerate("kMGT", 1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}
# What is read elsewhere, or is libvirt's own business.
_QUIET = words(
    "name uuid title description metadata memory currentMemory vcpu vcpus os features cpu clock "
    "devices on_poweroff on_reboot on_crash pm seclabel iothreads iothreadids sysinfo resource "
    "maxMemory"
)
_BOUNDS = "is not carried over: give the unit of QEMU such bounds (systemd.resource-control)"
_TUNING = {
    "memoryBacking": "is not carried over: QEMU's memory is ordinary memory",
    "memtune": _BOUNDS,
    "cputune": _BOUNDS,
    "numatune": _BOUNDS,
    "blkiotune": _BOUNDS,
    "genid": "is left out: no checkpoint is a clone of a VM",
    "throttlegroups": _BOUNDS,
}
_LOST = {
    "launchSecurity": "encrypted memory cannot be copied to another host",
    "idmap": "is of containers",
    "keywrap": "is not carried over",
}
# libvirt's name of an enlightenment, and QEMU's.
_HYPERV = {
    **{name: f"hv_{name}" for name in ("relaxed", "vapic", "vpindex", "runtime", "synic")},
    **{name: f"hv_{name}" for name in ("stimer", "reset", "frequencies", "tlbflush", "ipi")},
}
_FEATURES_QUIET = words("acpi apic pae hap ioapic vmport hyperv kvm pmu viridian")
_SMBIOS = {"bios": 0, "system": 1, "baseBoard": 2, "chassis": 3}
_SIMPLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def imported_from(root: Element, release: tuple[int, int] | None) -> Imported:
    """`release`: of this host's QEMU. ConfigError if nothing can be made of it."""
    _require_domain(root)
    remarks = Remarks()
    name = imported.name_of((root.findtext("name") or "").strip(), remarks)
    os = child(root, "os")
    kind = child(os, "type")
    machine = imported.machine_of(kind.get("machine", ""), release, remarks)
    devices = domain_devices.read(
        child(root, "devices"), name, "q35" not in kind.get("machine", ""), remarks
    )
    nics, disks = devices.nics, devices.disks
    imported.require(nics, disks, remarks)
    kernel = (os.findtext("kernel") or "").strip()
    if not kernel:
        disks = imported.in_order(disks, _boot_orders(os, devices, remarks))
    nics, disks = imported.placed(nics, disks, devices.vga, remarks)
    firmware, variables = _firmware(os, name, machine, remarks)
    if child(child(root, "clock"), "timer[@name='hpet']").get("present") == "no":
        machine += ",hpet=off"
    _elements(root, remarks)
    return Imported(
        VmTable(
            name=name,
            nic=nics,
            disk=disks,
            kernel=kernel,
            initrd=(os.findtext("initrd") or "").strip() if kernel else "",
            append=(os.findtext("cmdline") or "").strip() if kernel else "",
            memory_mib=_memory_mib(root),
            cpus=_cpus(root, remarks),
            accel=_ACCELERATORS[root.get("type", "")],
            machine=machine,
            cpu=_cpu(root, remarks),
            firmware=firmware,
            firmware_vars=variables,
            uuid=(root.findtext("uuid") or "").strip(),
            clock=_clock(child(root, "clock"), remarks),
            rng=devices.rng,
            vga=devices.vga,
            extra_args=[*_smbios(root, remarks), *devices.extra_args],
        ),
        imported.once(remarks),
    )


def _require_domain(root: Element) -> None:
    if root.tag != "domain":
        raise ConfigError(f"<{root.tag}> is no domain: `virsh dumpxml NAME` prints one")
    if root.get("type") not in _ACCELERATORS:
        raise ConfigError(f"a domain of type {root.get('type')!r}: only kvm and qemu are QEMU's")
    arch = child(child(root, "os"), "type").get("arch", "x86_64")
    if arch != "x86_64":
        raise ConfigError(f"a guest for {arch}: only x86_64 can be protected")


def _memory_mib(root: Element) -> int:
    memory = root.find("memory")
    if memory is None:
        raise ConfigError("the domain says nothing of its memory")
    unit = _UNITS.get(memory.get("unit", "KiB"))
    if unit is None:
        raise ConfigError(f"memory in {memory.get('unit')!r}: no such unit")
    size_bytes: int = number(memory.text, "memory") * unit
    return -(-size_bytes // (1 << 20))


def _cpus(root: Element, remarks: Remarks) -> int:
    vcpu = child(root, "vcpu")
    most = number(vcpu.text or "1", "vcpu")
    now = number(vcpu.get("current", str(most)), "vcpu")
    if now != most:
        remarks.note("vcpu", f"the guest has {now} for good; {most} could be plugged in before")
    if root.find("cpu/topology") is not None:
        remarks.note("cpu topology", "each processor is a socket of its own")
    if root.find("cpu/numa") is not None:
        remarks.cannot("cpu numa", "the guest has one node")
    return now


def _cpu(root: Element, remarks: Remarks) -> str:
    """As `-cpu` has it."""
    cpu = root.find("cpu")
    flags = [*_cpu_flags(cpu, remarks), *_hyperv(root, remarks)]
    model = _model(cpu, remarks)
    if flags and not model:
        model = "host"
    return ",".join([model, *flags])


def _model(cpu: Element | None, remarks: Remarks) -> str:
    if cpu is None:
        return "qemu64"  # libvirt's, if nothing is said
    model = (cpu.findtext("model") or "").strip()
    if model and _SIMPLE.fullmatch(model):
        return model
    mode = cpu.get("mode", "custom")
    if mode == "maximum":
        return "max"
    if mode in ("host-passthrough", "host-model"):
        text = "the host's own CPU: if the hosts' differ, set vm.cpu to a model that both have"
        remarks.note(f"cpu {mode}", text)
        return ""
    return "qemu64"


def _cpu_flags(cpu: Element | None, remarks: Remarks) -> Iterator[str]:
    signs = {"force": "+", "require": "+", "optional": "", "disable": "-", "forbid": "-"}
    for feature in cpu.iterfind("feature") if cpu is not None else ():
        name, policy = feature.get("name", ""), feature.get("policy", "require")
        sign = signs.get(policy, "")
        if sign and _SIMPLE.fullmatch(name):
            yield sign + name
        else:
            remarks.note(f"cpu feature {name}", f"its policy {policy} is left out")


def _hyperv(root: Element, remarks: Remarks) -> Iterator[str]:
    found = []
    for one in child(root, "features/hyperv"):
        if one.get("state") != "on":
            continue
        if one.tag in _HYPERV:
            found.append(_HYPERV[one.tag])
        elif one.tag == "spinlocks":
            found.append(f"hv_spinlocks={number(one.get('retries', '4095'), 'retries')}")
        else:
            remarks.note(f"hyperv {one.tag}", "is left out")
    if child(root, "clock/timer[@name='hypervclock']").get("present") == "yes":
        found.append("hv_time")
    if found:
        remarks.note("hyperv", "is in vm.cpu; no guest of Windows has been tried")
    yield from found


def _clock(clock: Element, remarks: Remarks) -> str:
    offset = clock.get("offset", "utc")
    if offset in ("utc", "localtime"):
        return offset
    basis = clock.get("basis", "utc")
    text = f"the hardware clock begins with the host's ({basis}): set it in the guest once"
    remarks.note(f"clock {offset}", text)
    return basis if basis in ("utc", "localtime") else "utc"


def _firmware(os: Element, name: str, machine: str, remarks: Remarks) -> tuple[str, str]:
    loader, nvram = os.find("loader"), os.find("nvram")
    code = (loader.text or "").strip() if loader is not None else ""
    if os.get("firmware") == "efi" and not code:
        text = "libvirt has not chosen its image yet: start the domain once and import it again"
        remarks.cannot("UEFI firmware", text)
        return "", ""
    if loader is None or not code:
        return "", ""
    if loader.get("type") != "pflash" and nvram is None:
        remarks.note(f"loader {code}", "is left out: the VM has QEMU's own BIOS")
        return "", ""
    source = child(nvram, "source").get("file", "") if nvram is not None else ""
    old = (nvram.text or "").strip() if nvram is not None else ""
    new = f"/var/lib/colo-ebpf/{name}_VARS.fd"
    _told_of_flash(loader, source or old, new, remarks)
    if loader.get("secure") == "yes" and "q35" not in machine:
        text = "needs q35 and SMM: name OVMF_CODE_4M.fd in vm.firmware"
        remarks.cannot("UEFI secure boot", text)
    return code, new


def _told_of_flash(loader: Element, old: str, new: str, remarks: Remarks) -> None:
    """The code stays as it is; of the variables the VM gets a copy of its own."""
    how = f"cp {old or 'the template of the variables'}"
    if loader.get("format", "raw") != "raw":
        how = f"qemu-img convert -O raw {old}"
        text = f"is {loader.get('format')}: make raw copies and name them in vm.firmware"
        remarks.cannot(f"UEFI firmware {(loader.text or '').strip()}", text)
    remarks.note("UEFI variables", f"`{how} {new}` while the guest is off, on both hosts")


def _boot_orders(os: Element, devices: Devices, remarks: Remarks) -> list[int | None]:
    named = [boot.get("dev", "") for boot in os.iterfind("boot")]
    if "network" in named or devices.nic_boots:
        remarks.note("boot from the network", "the NICs have no boot ROM: it boots from disk")
    return devices.boot_orders


def _smbios(root: Element, remarks: Remarks) -> Iterator[str]:
    sysinfo = child(root, "sysinfo[@type='smbios']")
    for tag, kind in _SMBIOS.items():
        entries = [
            f"{entry.get('name')}={_comma(entry.text)}"
            for entry in child(sysinfo, tag).iterfind("entry")
            if entry.get("name") not in ("uuid", None)
        ]
        if entries:
            yield from ("-smbios", ",".join([f"type={kind}", *entries]))
    for entry in child(sysinfo, "oemStrings").iterfind("entry"):
        yield from ("-smbios", f"type=11,value={_comma(entry.text)}")
    for other in root.iterfind("sysinfo"):
        if other.get("type") != "smbios":
            remarks.cannot(f"sysinfo {other.get('type')}", "is left out")


def _comma(said: str | None) -> str:
    return (said or "").strip().replace(",", ",,")


def _elements(root: Element, remarks: Remarks) -> None:
    """What nothing above has read."""
    for one in root:
        if one.tag in _QUIET:
            continue
        if one.tag.endswith(":commandline"):
            said = " ".join(a.get("value", "") for a in one if a.tag.endswith(":arg"))
            text = "is left out: look whether vm.extra-args may have it"
            remarks.cannot(f"QEMU's command line {said!r}", text)
        elif one.tag in _LOST:
            remarks.cannot(one.tag, _LOST[one.tag])
        else:
            remarks.note(one.tag, _TUNING.get(one.tag, "is not known here, and left out"))
    for one in child(root, "features"):
        if one.tag not in _FEATURES_QUIET and one.get("state", "on") != "off":
            remarks.note(f"feature {one.tag}", "is left out")
    _life(root, remarks)


def _life(root: Element, remarks: Remarks) -> None:
    usual = {"on_poweroff": "destroy", "on_reboot": "restart"}
    for tag, said in usual.items():
        if root.findtext(tag, said).strip() != said:
            remarks.note(tag, f"is {said!r} here: docs/operate/planned-work.md tells of the rest")
