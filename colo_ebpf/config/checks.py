# SPDX-License-Identifier: GPL-2.0-only
"""What no single key shows: keys that must go together, be in order or be distinct. Pure."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from colo_ebpf import addresses
from colo_ebpf.config.schema import ArbiterTable, Config, Disk, FenceTable, VmTable
from colo_ebpf.errors import ConfigError


def cross_check(config: Config, file: Path) -> None:
    """Raises ConfigError for the first key that does not go with another one."""
    timing, sizes = config.timing, config.datapath
    _check_boot(config.vm, file)
    _check_checkpoint(config, file)
    _check_arbiter(config.arbiter, file)
    _check_fence(config.fence, file)
    _check_command("notify", config.notify.command, file)
    if timing.link_timeout_ms >= timing.peer_timeout_ms:
        raise ConfigError(
            f"{file}: timing.link-timeout-ms ({timing.link_timeout_ms}) must be below "
            f"timing.peer-timeout-ms ({timing.peer_timeout_ms}): a cut-off primary has to fall "
            f"silent before its peer takes over"
        )
    if timing.heartbeat_ms * 3 > timing.link_timeout_ms:
        raise ConfigError(
            f"{file}: timing.heartbeat-ms ({timing.heartbeat_ms}) must be at most a third of "
            f"timing.link-timeout-ms ({timing.link_timeout_ms})"
        )
    buckets = sizes.datagram_buckets
    if buckets & (buckets - 1):
        raise ConfigError(f"{file}: datapath.datagram-buckets ({buckets}) must be a power of two")
    if config.host.name == config.peer.name:
        raise ConfigError(f"{file}: host.name and peer.name are both {config.host.name!r}")
    _check_paths_between_hosts(config, file)
    for nic in config.vm.nic:
        if int(nic.mac[:2], 16) & 1:
            raise ConfigError(f"{file}: vm.nic.mac: {nic.mac} is a multicast address")
        if nic.vlan in nic.trunk:
            raise ConfigError(
                f"{file}: vm.nic.trunk: VLAN {nic.vlan} is vm.nic.vlan, and leaves without a tag"
            )
    for what in ("mac", "tap"):
        values = [str(getattr(nic, what)).lower() for nic in config.vm.nic]
        if len(set(values)) < len(values):
            raise ConfigError(f"{file}: vm.nic.{what}: two NICs have the same one: {values}")
    _check_disks(config, file)
    _check_shared(config, file)
    _check_slots(config.vm, file)


def _check_slots(vm: VmTable, file: Path) -> None:
    """0 and 1 are the chipset's, and 2 the display's."""
    least = 3 if vm.vga else 2
    slots = [nic.slot for nic in vm.nic] + [disk.slot for disk in vm.disk]
    slots = [slot for slot in slots if slot]
    for slot in slots:
        if slot < least:
            raise ConfigError(f"{file}: slot: {slot} is taken; NICs and disks have {least} to 31")
    if len(set(slots)) < len(slots):
        raise ConfigError(f"{file}: slot: two NICs or disks have the same one: {slots}")


def _check_boot(vm: VmTable, file: Path) -> None:
    for key, value in (("initrd", vm.initrd), ("append", vm.append)):
        if value and not vm.kernel:
            raise ConfigError(
                f"{file}: vm.{key} goes with vm.kernel: without it the VM boots from its first "
                "disk, whose boot loader says the rest"
            )
    if bool(vm.firmware) != bool(vm.firmware_vars):
        raise ConfigError(
            f"{file}: vm.firmware and vm.firmware-vars come together: the code, and a copy of its "
            "template of variables that is this VM's own (OVMF_CODE_4M.fd, OVMF_VARS_4M.fd)"
        )
    for path in (vm.firmware, vm.firmware_vars):
        if "," in path:  # QEMU takes it for the end of the name
            raise ConfigError(f"{file}: vm.firmware: {path!r} has a comma")


def _check_paths_between_hosts(config: Config, file: Path) -> None:
    peer = config.peer
    paths = (
        (config.link.address, "link.address", peer.link_address),
        (config.management.address, "management.address", peer.management_address),
    )
    for ours, name, theirs in paths:
        versions = []
        for key, text in ((name, ours), (f"peer.{name.replace('.', '-')}", theirs)):
            try:
                versions.append(addresses.host_address(text).version)
            except ValueError as e:
                raise ConfigError(f"{file}: {key}: {text!r} {e}") from e
        if len(set(versions)) > 1:
            raise ConfigError(
                f"{file}: {name} ({ours}) is IPv{versions[0]}, {key} ({theirs}) is "
                f"IPv{versions[1]}: both ends of a path are of the same kind"
            )


def _check_checkpoint(config: Config, file: Path) -> None:
    table, least_ms = config.checkpoint, config.timing.compare_timeout_ms
    if table.period_ms and table.mode != "periodic":
        raise ConfigError(
            f'{file}: checkpoint.period-ms goes with checkpoint.mode = "periodic", '
            f'not with "{table.mode}"'
        )
    if table.longest_wait_ms < least_ms:
        raise ConfigError(
            f"{file}: checkpoint.longest-wait-ms ({table.longest_wait_ms}) must be at least "
            f"timing.compare-timeout-ms ({least_ms})"
        )


def _check_disks(config: Config, file: Path) -> None:
    paths = [str(Path(disk.path).absolute()) for disk in config.vm.disk]
    if len(set(paths)) < len(paths):
        raise ConfigError(f"{file}: vm.disk.path: two disks have the same one: {paths}")
    for name in ("path", "overlay_dir"):
        for disk in config.vm.disk:
            if "," in getattr(disk, name):  # QEMU takes it for the end of the name
                key = name.replace("_", "-")
                raise ConfigError(f"{file}: vm.disk.{key}: {getattr(disk, name)!r} has a comma")
    for disk in config.vm.disk:
        if wrong := _disk_error(disk):
            raise ConfigError(f"{file}: vm.disk: {disk.path}: {wrong}")
    if all(disk.readonly for disk in config.vm.disk):
        raise ConfigError(f"{file}: vm.disk: all are readonly: a VM has a disk that it writes to")
    orders = [disk.boot_order for disk in config.vm.disk if disk.boot_order]
    if orders and config.vm.kernel:
        raise ConfigError(f"{file}: vm.disk.boot-order does not go with vm.kernel, which is booted")
    if len(set(orders)) < len(orders):
        raise ConfigError(f"{file}: vm.disk.boot-order: two disks have the same one: {orders}")


def _disk_error(disk: Disk) -> str:
    """Which of its keys do not go together ("" if all do)."""
    if disk.slot and disk.bus == "virtio-scsi":
        return 'slot does not go with bus = "virtio-scsi": one controller has all such disks'
    if not disk.readonly:
        return "" if disk.overlay_dir else "overlay-dir is missing: its replica writes there"
    if disk.overlay_dir or disk.overlay_limit_mib:
        return "overlay-dir and overlay-limit-mib do not go with readonly: nothing is written"
    if disk.format != "raw":
        return "readonly needs a raw image: qemu-img convert -O raw"
    if disk.bus == "virtio-scsi" and disk.sector_bytes != 512:
        return "sector-bytes does not go with a CD-ROM (readonly on virtio-scsi), which has 2048"
    return ""


def _check_shared(config: Config, file: Path) -> None:
    shared = config.vm.shared_disks
    for disk in shared:
        if disk.readonly:
            raise ConfigError(f"{file}: vm.disk.x-shared: {disk.path} is readonly: leave it out")
        if disk.format != "raw":
            raise ConfigError(
                f"{file}: vm.disk.x-shared: {disk.path} is {disk.format}: only a raw disk can be "
                "opened by two hosts (qemu-img convert)"
            )
    fence = config.fence
    if fence.reservation and not shared:
        raise ConfigError(f"{file}: fence.reservation: no disk has x-shared: leave it out")
    if shared and not fence.reservation and fence.when != "before-solo":
        raise ConfigError(
            f'{file}: vm.disk.x-shared needs fence.reservation, or fence.when = "before-solo" and '
            "fence.command: a host that goes on alone writes to the disk, and the other one must "
            "not any more"
        )


def _check_fence(table: FenceTable, file: Path) -> None:
    if table.when != "off" and not table.command:
        raise ConfigError(f'{file}: fence.when = "{table.when}" needs fence.command')
    _check_command("fence", table.command, file)


def _check_command(table: str, command: list[str], file: Path) -> None:
    if command and not Path(command[0]).is_absolute():
        raise ConfigError(
            f"{file}: {table}.command: {command[0]!r} must be the whole path of a program"
        )
    if any("\0" in word for word in command):
        raise ConfigError(f"{file}: {table}.command: a word of it has a zero byte")


def _check_arbiter(table: ArbiterTable, file: Path) -> None:
    """Each kind has its own keys: one of the other kind was meant for something else."""
    tls = {"ca-file": table.ca_file, "cert-file": table.cert_file, "key-file": table.key_file}
    given = {"path": table.path, "endpoints": table.endpoints, **tls}
    needed = {"file": "path", "etcd": "endpoints"}[table.kind]
    strange = [k for k, v in given.items() if v and (k == "path") != (table.kind == "file")]
    for key in strange:
        raise ConfigError(f'{file}: arbiter.{key} does not go with arbiter.kind = "{table.kind}"')
    if not given[needed]:
        raise ConfigError(f'{file}: arbiter.kind = "{table.kind}" needs arbiter.{needed}')
    if bool(table.cert_file) != bool(table.key_file):
        raise ConfigError(f"{file}: arbiter.cert-file and arbiter.key-file come together")
    for endpoint in table.endpoints:
        wrong = _endpoint_error(endpoint, table)
        if wrong:
            raise ConfigError(f"{file}: arbiter.endpoints: {endpoint!r}: {wrong}")


def _endpoint_error(endpoint: str, table: ArbiterTable) -> str:
    """What is wrong with it ("" if nothing is)."""
    try:
        url = urlsplit(endpoint)
        host, port = url.hostname, url.port
    except ValueError as e:
        return str(e)
    if url.scheme not in ("http", "https") or not host or port is None:
        return "expected https://HOST:PORT (or http://, in a lab)"
    if url.path.strip("/") or url.query or url.fragment or "@" in url.netloc:
        return "nothing but a host and a port may be named"
    if url.scheme == "http" and (table.ca_file or table.cert_file):
        return "arbiter.ca-file, cert-file and key-file need https://"
    if url.scheme == "https" and not table.ca_file:
        return "https:// needs arbiter.ca-file, the CA that signed the servers' certificates"
    return ""
