# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf doctor`: names each thing this host lacks, and what to do about it.

Kernel features are tried in a network namespace made for the purpose, not looked up in a
configuration file.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colo_ebpf.config import Config, Disk, FenceTable
from colo_ebpf.control import settings
from colo_ebpf.control.arbiters import arbiter_of
from colo_ebpf.control.machine import probe_qemu
from colo_ebpf.datapath import compiler, headers, libbpf, loader, netdev
from colo_ebpf.datapath.image import Source
from colo_ebpf.errors import AttachError, ColoError, DatapathError, FenceError, VmError
from colo_ebpf.storage.image import look
from colo_ebpf.storage.overlay import check_room

_QEMU = "qemu-system-x86_64"
_QMP_S = 20
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
    qemu = config.vm.qemu if config else _QEMU
    checks: list[tuple[str, Callable[[], str]]] = [
        ("permissions", _permissions),
        ("bcc", lambda: _import("bcc", "python3-bpfcc")),
        ("libbpf", libbpf.found),
        ("libnbd", lambda: _import("nbd", "python3-libnbd")),
        ("kernel headers", _headers),
        ("bpffs", lambda: _bpffs(bpffs)),
        ("kernel: bridge", lambda: _device(lambda: netdev.create_bridge("br0"))),
        ("kernel: tap", lambda: _device(lambda: netdev.create_tap("tap0", _GUEST_MTU))),
        ("kernel: vxlan", lambda: _device(lambda: netdev.create_vxlan("vx0", 4789, _GUEST_MTU))),
        ("kernel: htb", _delay_line),
        ("kernel: bpf", _bpf),
        ("backlog", _backlog),
        ("qemu", lambda: _qemu(qemu)),
        ("qemu x-colo", lambda: _x_colo(qemu)),
        ("qemu-img", lambda: _program("qemu-img", "qemu-utils")),
        ("kvm", _kvm),
    ]
    if config is not None:
        checks += _configured(config)
    return (_look(name, check) for name, check in checks)


def _configured(config: Config) -> list[tuple[str, Callable[[], str]]]:
    nics, link = config.vm.nic, config.link

    def bridge() -> str:
        for nic in nics:
            netdev.index_of(nic.bridge)
        return f"{', '.join(nic.bridge for nic in nics)}: there"

    def mtu() -> str:
        largest = max(nic.mtu for nic in nics)
        netdev.check_link_mtu(link.underlay, largest)
        return f"{link.underlay} carries the guest's {largest}-byte packets in the tunnel"

    def key() -> str:
        settings.key(config)
        return f"{config.peer.key_file}"

    def arbiter() -> str:
        record = asyncio.run(arbiter_of(config).examine())
        return f"generation {record.generation}: {record.describe()}"

    checks = [
        ("client bridge", bridge),
        ("link MTU", mtu),
        ("heartbeat key", key),
        ("arbiter", arbiter),
    ]
    if config.fence.when != "off":
        checks.append(("fence", lambda: _fence(config.fence)))
    if config.watchdog.device:
        checks.append(("watchdog", lambda: _watchdog(config)))
    for number, disk in enumerate(config.vm.disk):
        checks += _disk(number, disk)
    return checks


def _disk(number: int, disk: Disk) -> list[tuple[str, Callable[[], str]]]:
    def image() -> str:
        found = look(Path(disk.path), disk.format)
        return f"{disk.path}: {found.format}, {found.virtual_bytes} bytes"

    def overlays() -> str:
        return check_room(Path(disk.overlay_dir), disk.overlay_limit_mib << 20)

    return [(f"disk {number}", image), (f"overlays {number}", overlays)]


def _fence(table: FenceTable) -> str:
    """It is looked at, never run: it would turn the other host off."""
    program = table.command[0]
    if not os.access(program, os.X_OK) or not Path(program).is_file():
        raise FenceError(f"fence.command: {program} cannot be run: is it there and executable?")
    if os.stat(program).st_mode & 0o022:
        raise FenceError(f"fence.command: {program} can be written by others than its owner")
    return f"{table.when}: {program} can be run; try it by hand (operations.md, Fencing)"


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
        found = headers.find(Path(cache))
    return "of the running kernel" if found is None else f"from {found.name}"


def _bpffs(path: Path) -> str:
    loader.require_bpffs(path)
    return f"mounted on {path}"


def _device(make: Callable[[], None]) -> str:
    name = f"colo-doctor-{os.getpid()}"
    netdev.create_namespace(name)
    try:
        netdev.in_namespace(name, make)
    except OSError as e:
        raise DatapathError(f"{e}") from e
    finally:
        netdev.remove_namespace(name)
    return "can be made"


def _delay_line() -> str:
    try:
        return _device(lambda: netdev.create_delay_line("in", "out", _GUEST_MTU, _HEARTBEAT_MS))
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


def _qemu(binary: str) -> str:
    found = asyncio.run(probe_qemu(binary))
    version = ".".join(map(str, found.version))
    if not found.known_good:
        raise VmError(f"{binary} {version}: {found.why}; install another version")
    return f"{binary} {version}: {found.why}"


def _x_colo(binary: str) -> str:
    commands = [{"execute": "qmp_capabilities"}, {"execute": "query-migrate-capabilities"}]
    commands.append({"execute": "quit"})
    try:
        done = subprocess.run(
            [binary, "-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"],
            input="".join(json.dumps(c) + "\n" for c in commands),
            capture_output=True,
            text=True,
            timeout=_QMP_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise VmError(f"{binary}: cannot be asked: {e}") from e
    if '"x-colo"' not in done.stdout:
        raise VmError(f"{binary} has no x-colo capability; install a QEMU built with COLO")
    return "built with COLO"


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if not found:
        raise VmError(f"{name}: not installed; install {package}")
    return found


def _backlog() -> str:
    """Never lacking: a frame that is dropped is sent again."""
    frames = netdev.backlog_frames()
    if frames is None:
        return "not to be seen in this network namespace"
    if frames < netdev.BACKLOG_FRAMES:
        wanted = f"net.core.netdev_max_backlog = {netdev.BACKLOG_FRAMES}"
        return f"{frames} frames, bursts may be dropped: {wanted}"
    return f"{frames} frames may wait for a CPU"


def _kvm() -> str:
    """Never lacking: TCG is slower, and said to be used."""
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is there; accel = auto boots to find out whether it works"
    return "no /dev/kvm: TCG will be used"
