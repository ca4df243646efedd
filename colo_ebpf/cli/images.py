# SPDX-License-Identifier: GPL-2.0-only
"""What QEMU will open, opened beforehand: `config check` and `doctor` ask the same.

The daemon runs as root without the right to pass over file modes, so a root shell can open more
than it can; QEMU's user is let in by the daemon. Each look is made with the daemon's rights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from colo_ebpf.config.schema import Config, Disk
from colo_ebpf.control.host.capabilities import as_daemon
from colo_ebpf.control.qemu import vhost
from colo_ebpf.errors import ColoError, ConfigError, StorageError
from colo_ebpf.storage.image import identity, look
from colo_ebpf.storage.overlay import check_room
from colo_ebpf.storage.shared_disk import name_of

Check = Callable[[], str]
AS_ROOT = "opened as QEMU will open them"
NOT_ROOT = "not opened: that takes root"


def checks(config: Config) -> list[tuple[str, Check]]:
    """Of each file that the VM is made of; a check raises ColoError."""
    vm = config.vm
    found: list[tuple[str, Check]] = []
    for number, disk in enumerate(vm.disk):
        found.append((f"disk {number}", partial(_image, vm.disk, number)))
        if not disk.readonly:
            found.append((f"overlays {number}", partial(_overlays, disk)))
    for name, path, mode in (
        ("kernel", vm.kernel, "rb"),
        ("initrd", vm.initrd, "rb"),
        ("firmware", vm.firmware, "rb"),
        ("firmware vars", vm.firmware_vars, "r+b"),
    ):
        if path:
            found.append((name, partial(_opened, path, mode)))
    if any(nic.vhost for nic in vm.nic):
        found.append(("vhost-net", vhost.require))
    return [(name, partial(as_daemon, check)) for name, check in found]


def require(config: Config, file: Path) -> str:
    """ConfigError with all that cannot be opened; else a word on how it was looked at."""
    if os.geteuid():
        return NOT_ROOT
    wrong = []
    for name, check in checks(config):
        try:
            check()
        except ColoError as e:
            wrong.append(f"{name}: {e}")
    if wrong:
        raise ConfigError(f"{file}: " + "\n".join(wrong))
    return AS_ROOT


def _image(disks: list[Disk], number: int) -> str:
    disk = disks[number]
    found = look(Path(disk.path), disk.format, disk.sector_bytes, readonly=disk.readonly)
    for other in range(number):
        if identity(Path(disks[other].path)) == identity(Path(disk.path)):
            raise StorageError(
                f"image {disk.path}: is the image of disk {other} too: give each disk its own"
            )
    kind = "block device" if found.protocol == "host_device" else "file"
    how = ", only read" if disk.readonly else ""
    how += f", shared: {name_of(Path(disk.path))}" if disk.x_shared else ""
    return f"{disk.path}: {kind}, {found.format}, {found.virtual_bytes} bytes{how}"


def _overlays(disk: Disk) -> str:
    return check_room(Path(disk.overlay_dir), disk.overlay_limit_mib << 20)


def _opened(path: str, mode: str) -> str:
    try:
        with open(path, mode) as file:
            file.read(1)
    except OSError as e:
        raise StorageError(
            f"{path}: {e.strerror}; the daemon is root, and bound to file modes all the same"
        ) from e
    return path
