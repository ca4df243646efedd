# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf doctor`: names each thing this host lacks, and what to do about it.

Kernel features are tried in a network namespace made for the purpose, not looked up in a
configuration file.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from colo_ebpf.cli import images, netfilter
from colo_ebpf.cli.vms import socket_of
from colo_ebpf.config.schema import Config, FenceTable, Nic, VmTable
from colo_ebpf.control import link_security, settings
from colo_ebpf.control.admin import control_socket
from colo_ebpf.control.arbiter.factory import arbiter_of
from colo_ebpf.control.host.capabilities import as_daemon, user_of
from colo_ebpf.control.qemu import accel, support
from colo_ebpf.control.qemu.support import Use
from colo_ebpf.datapath.bpf import compiler, kernel_headers, libbpf, loader
from colo_ebpf.datapath.bpf.image import Source
from colo_ebpf.datapath.net import (
    bridges,
    delay_line,
    namespaces,
    own_addresses,
    rps,
    tcx,
    tunnel,
    tuntap,
    vxlan,
    wgdevice,
    wireguard,
)
from colo_ebpf.datapath.net.own_addresses import HostAddress
from colo_ebpf.datapath.net.tunnel import Security
from colo_ebpf.errors import (
    AttachError,
    ColoError,
    ConfigError,
    ControlError,
    DatapathError,
    NoDaemonError,
    VmError,
)
from colo_ebpf.storage import reservation

_QEMU = "qemu-system-x86_64"
_GUEST_MTU, _HEARTBEAT_MS = 1500, 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `detail` says what to do if it is not in order."""

    name: str
    ok: bool
    detail: str

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(config: Config | None) -> Iterator[Finding]:
    """Everything a host needs; with a configuration also what that one names. One by one."""
    bpffs = Path(config.host.bpffs) if config else Path("/sys/fs/bpf")
    checks: list[tuple[str, Callable[[], str]]] = [
        ("permissions", _permissions),
        ("bcc", lambda: _import("bcc", "python3-bpfcc")),
        ("cryptography", lambda: _import("cryptography", "python3-cryptography")),
        ("libbpf", libbpf.found),
        ("libnbd", lambda: _import("nbd", "python3-libnbd")),
        ("kernel headers", _headers),
        ("bpffs", lambda: _bpffs(bpffs)),
        ("kernel: bridge", lambda: _device(lambda: bridges.create("br0"))),
        ("kernel: tap", lambda: _device(lambda: tuntap.create_tap("tap0", _GUEST_MTU))),
        ("kernel: vxlan", lambda: _device(lambda: vxlan.create("vx0", 4789, _GUEST_MTU))),
        ("kernel: htb", _delay_line),
        ("kernel: bpf", _bpf),
        ("kernel: hooks", _hooks),
        ("backlog", _backlog),
        ("qemu", lambda: _qemu(_use(config))),
        ("qemu-img", lambda: _program("qemu-img", "qemu-utils")),
        ("kvm", lambda: _kvm(config.vm if config else None)),
    ]
    if config is not None:
        checks += _configured(config)
    return (_look(name, check) for name, check in checks)


def _configured(config: Config) -> list[tuple[str, Callable[[], str]]]:
    nics, link = config.vm.nic, config.link

    def bridge() -> str:
        return ", ".join(_bridge(nic) for nic in nics)

    def mtu() -> str:
        largest = max(nic.mtu for nic in nics)
        need = _needed_mtu(link.security, largest, link.address)
        vxlan.check_link_mtu(link.underlay, largest, need)
        return f"{link.underlay} carries the guest's {largest}-byte packets in the tunnel"

    def key() -> str:
        settings.key(config)
        return f"{config.peer.key_file}"

    def arbiter() -> str:
        record = asyncio.run(arbiter_of(config).examine())
        return f"generation {record.generation}: {record.describe()}"

    checks: list[tuple[str, Callable[[], str]]] = [
        ("client bridge", bridge),
        ("packet filter", netfilter.look),
        ("link address", lambda: _address(link.address)),
        ("mgmt address", lambda: _address(config.management.address)),
        ("link MTU", mtu),
        ("link security", lambda: _link_security(link.security)),
        ("heartbeat key", partial(as_daemon, key)),
        ("QEMU's user", lambda: _user(config.vm.user)),
        ("arbiter", partial(as_daemon, arbiter)),
    ]
    if config.fence.when != "off":
        checks.append(("fence", lambda: _fence(config.fence)))
    if config.fence.reservation:
        checks.append(("reservation", lambda: _reservation(config)))
    if config.notify.command:
        checks.append(("notify", lambda: _command("notify", config.notify.command)))
    if config.watchdog.device:
        checks.append(("watchdog", lambda: _watchdog(config)))
    return checks + images.checks(config)


def _bridge(nic: Nic) -> str:
    name = nic.bridge
    fault = bridges.fault(name, nic.vlan)
    fault = fault or bridges.vlan_fault(name, nic.vlan, nic.trunk)
    if fault:
        raise AttachError(fault)
    vlan = bridges.new_port_vlan(name)
    if vlan is None:
        return f"{name}: there"
    tagged = f", and with tags in {', '.join(map(str, nic.trunk))}" if nic.trunk else ""
    return f"{name}: there, the tap will be in VLAN {nic.vlan or vlan}{tagged}"


def _user(name: str) -> str:
    user = user_of(name)
    if user is None:
        return "root: who breaks out of QEMU has this host"
    if shutil.which("setfacl") is None:
        raise ConfigError("setfacl, which lets QEMU's user in to its files: install acl")
    return f"{name}: {user.uid}"


def _address(address: str) -> str:
    found = own_addresses.look(address)
    if found is not HostAddress.READY:
        raise AttachError(f"{address} {found.value}")
    return f"{address} {found.value}"


def _link_security(wanted: str) -> str:
    """`none` had to be written: that is said again here."""
    match link_security.best(wanted):
        case Security.NONE:
            return f"not sealed: {link_security.UNSEALED}"
        case Security.IPSEC:
            return "IPsec: the kernel seals and opens with AES-256-GCM"
        case Security.WIREGUARD:
            by = wgdevice.PROGRAM if wgdevice.kernel_lacks() else "the kernel"
            return f"WireGuard: {by} seals and opens with ChaCha20-Poly1305"


def _needed_mtu(wanted: str, guest_mtu: int, address: str) -> int:
    """Where nothing can seal the link, that is said elsewhere."""
    try:
        chosen = link_security.best(wanted)
    except ControlError:
        chosen = Security.IPSEC
    if chosen is Security.WIREGUARD:
        return wireguard.needed_mtu(guest_mtu, address)
    return tunnel.needed_mtu(guest_mtu, address, sealed=chosen is Security.IPSEC)


def _fence(table: FenceTable) -> str:
    """It is looked at, never run: it would turn the other host off."""
    looked = _command("fence", table.command)
    return f"{table.when}: {looked}; try it by hand (docs/operate/fencing.md)"


def _reservation(config: Config) -> str:
    """Tried, with the daemon's rights, unless a daemon of this VM runs here: it may have it."""
    made = settings.reservations(config)
    names = ", ".join(map(str, made.paths))
    try:
        control_socket.ask(socket_of(config), "status")
    except NoDaemonError:
        for path in made.paths:
            as_daemon(partial(reservation.probe, path, made.own))
        return f"{names}: takes a reservation; this host's key is {made.own:#x}"
    return f"{names}: not tried beside a daemon; this host's key is {made.own:#x}"


def _command(table: str, command: list[str]) -> str:
    program = command[0]
    if not os.access(program, os.X_OK) or not Path(program).is_file():
        raise ConfigError(f"{table}.command: {program} cannot be run: is it there and executable?")
    if os.stat(program).st_mode & 0o022:
        raise ConfigError(f"{table}.command: {program} can be written by others than its owner")
    return f"{program} can be run"


def _watchdog(config: Config) -> str:
    """Opening it would arm it, and the daemon may have it open: it is only looked at."""
    settings.watchdog(config).look()
    table = config.watchdog
    return f"{table.device}: nowayout is not set; the daemon asks it for {table.timeout_s} s"


def readable(one: Finding) -> str:
    """One line; what is lacking stands out."""
    return f"{'ok' if one.ok else 'LACKS':5}  {one.name:14}  {one.detail}"


def _look(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except ColoError as e:
        return Finding(name, False, str(e))


def _permissions() -> str:
    if os.geteuid():
        raise DatapathError("not root: run as root, or as the systemd unit does")
    return "root"


def _import(module: str, package: str) -> str:
    try:
        importlib.import_module(module)
    except ImportError as e:
        raise DatapathError(
            f"{e}: install {package}, and use Debian's /usr/bin/python3 with --system-site-packages"
        ) from e
    return f"from {package}"


def _headers() -> str:
    with tempfile.TemporaryDirectory() as cache:
        found = kernel_headers.find(Path(cache))
    return "of the running kernel" if found is None else f"from {found.name}"


def _bpffs(path: Path) -> str:
    loader.require_bpffs(path)
    return f"mounted on {path}"


def _device(make: Callable[[], None]) -> str:
    name = f"colo-doctor-{os.getpid()}"
    namespaces.create(name)
    try:
        namespaces.run_in(name, make)
    except OSError as e:
        raise DatapathError(f"{e}") from e
    finally:
        namespaces.remove(name)
    return "can be made"


def _delay_line() -> str:
    try:
        return _device(lambda: delay_line.create("in", "out", _GUEST_MTU, _HEARTBEAT_MS))
    except AttachError as e:
        return f"none, so bulk downloads are slower, and the daemon takes more of a processor: {e}"


def _bpf() -> str:
    text = "int colo_pass(struct __sk_buff *skb) { return 0; }\n"
    source = Source("doctor.c", text, (), ("colo_pass",))
    with tempfile.TemporaryDirectory() as cache:
        images = compiler.compile_all([source], Path(cache))
        for module in loader.load(images, Path(cache)):
            module.close()
    return "programs compile and load"


def _qemu(use: Use) -> str:
    """It is started, without a VM, and asked."""
    version = asyncio.run(support.probe(use))
    tried = version[:2] in support.TRIED
    said = "COLO was tried with it" if tried else "nothing is known against it, it was not tried"
    return f"{use.qemu} {support.text(version)}: it can run COLO; {said}"


def _use(config: Config | None) -> Use:
    """Without a configuration: QEMU itself, and the VM as it is by default."""
    if config is None:
        return Use(_QEMU)
    vm = config.vm
    accel = "kvm" if vm.accel != "tcg" and _kvm_opens() else vm.accel
    return Use(vm.qemu, vm.machine, "tcg" if accel == "auto" else accel, vm.preload)


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if not found:
        raise VmError(f"{name}: not installed; install {package}")
    return found


def _hooks() -> str:
    if tcx.available():
        return "TCX links: nobody else takes our programs off"
    return "clsact filters: other tools can take our programs off; TCX links came with Linux 6.6"


def _backlog() -> str:
    """Never lacking: a frame that is dropped is sent again."""
    frames = rps.backlog_frames()
    if frames is None:
        return "not to be seen in this network namespace"
    if frames < rps.BACKLOG_FRAMES:
        wanted = f"net.core.netdev_max_backlog = {rps.BACKLOG_FRAMES}"
        return f"{frames} frames, bursts may be dropped: {wanted}"
    return f"{frames} frames may wait for a CPU"


def _kvm(vm: VmTable | None) -> str:
    """Lacking only where the configuration insists on it: TCG is slower, and said to be used."""
    wanted = vm.accel if vm else "auto"
    if wanted == "tcg":
        return "not wanted: vm.accel is tcg"
    found, why = "tcg", "/dev/kvm cannot be opened"
    if _kvm_opens():
        qemu, kernel = (vm.qemu, vm.kernel) if vm else (_QEMU, "")
        found, why = asyncio.run(accel.try_kvm(qemu, kernel))
    if found == "kvm":
        return f"KVM works: {why}"
    if wanted == "kvm":
        raise VmError(f'{why}, but vm.accel is "kvm"; set it to "auto" or "tcg", or mend KVM')
    return f"TCG will be used, which is slower: {why}"


def _kvm_opens() -> bool:
    return os.access("/dev/kvm", os.R_OK | os.W_OK)
