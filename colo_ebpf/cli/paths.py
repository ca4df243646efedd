# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf paths`: where everything of one VM is on this host. Pure but for one look."""

from __future__ import annotations

from pathlib import Path

from colo_ebpf.cli import vms
from colo_ebpf.config.schema import Config
from colo_ebpf.render import table

QEMU_LOG, GUEST_LOG = "qemu.log", "serial.log"  # in the run directory


def paths(config: Config, file: Path) -> dict[str, str]:
    """What, and where; units and endpoints as they are named."""
    host, run = config.host, Path(config.host.run_dir)
    found = {
        "configuration": str(file),
        "unit": vms.unit_of(file),
        "run directory": str(run),
        "control socket": str(vms.socket_of(config)),
        "QMP socket": str(run / "qmp.sock"),
        "pid of QEMU": str(run / "qemu.pid"),
        "log of QEMU": str(run / QEMU_LOG),
        "console of the guest": str(run / GUEST_LOG),
        "state directory": host.state_dir,
        "compiled programs": host.cache_dir,
        "pinned maps": str(_pins(config)),
        "key": config.peer.key_file,
    }
    for number, disk in enumerate(config.vm.disk):
        found[f"disk {number}"] = disk.path
        if not disk.readonly:
            found[f"overlays of disk {number}"] = disk.overlay_dir
    arbiter = config.arbiter
    found["arbiter"] = arbiter.path or ", ".join(arbiter.endpoints)
    return found


def _pins(config: Config) -> Path:
    from colo_ebpf.datapath.bpf.loader import pin_directory

    return pin_directory(Path(config.host.bpffs), config.vm.name)


def readable(found: dict[str, str]) -> str:
    """For people, who are told which of them is not there now."""
    return table([(what, where + _lacks(where)) for what, where in found.items()])


def _lacks(where: str) -> str:
    return "  (not there)" if where.startswith("/") and not Path(where).exists() else ""
