# SPDX-License-Identifier: GPL-2.0-only
"""A systemd scope for each QEMU: bounds of memory and tasks, and the devices it may open.

The daemon asks systemd for it (org.freedesktop.systemd1, StartTransientUnit); the scope ends with
QEMU. Where systemd does not run, QEMU has no such bounds, and the log says so once.
"""

from __future__ import annotations

import asyncio
import logging
import stat
from pathlib import Path

from colo_ebpf.control.qemu.cmdline import VmSpec
from colo_ebpf.storage import overlay

_SYSTEMD = Path("/run/systemd/system")
_ANSWER_S = 5.0
_MIB = 1 << 20
_QEMU_ITSELF_BYTES = 1024 * _MIB
_TRANSLATED_BYTES = 1024 * _MIB  # code that TCG keeps
_TASKS, _TASKS_A_DISK, _TASKS_A_CPU = 256, 128, 2
_log = logging.getLogger(__name__)


def memory_bytes(spec: VmSpec, overlays_bytes: int) -> int:
    """The most that QEMU may take. A secondary has the guest's memory twice, and its overlays may
    lie in memory."""
    translated = _TRANSLATED_BYTES if spec.accel == "tcg" else 0
    return 2 * spec.memory_mib * _MIB + _QEMU_ITSELF_BYTES + translated + overlays_bytes


def tasks(spec: VmSpec) -> int:
    """Threads: of vCPUs, of requests to disks, of QEMU itself."""
    return _TASKS + _TASKS_A_DISK * len(spec.disks) + _TASKS_A_CPU * spec.cpus


def devices(spec: VmSpec) -> list[tuple[str, str]]:
    """With what may be done. Beside those of every process (null, urandom and the like); taps and
    vhost-net are opened for it."""
    found = [("/dev/kvm", "rw")] if spec.accel == "kvm" else []
    for disk in spec.disks:
        path = disk.path.resolve()
        if path.exists() and stat.S_ISBLK(path.stat().st_mode):
            found.append((str(path), "r" if disk.readonly else "rw"))
    return found


def request(spec: VmSpec, pid: int, overlays_bytes: int) -> list[str]:
    """What to run: busctl(1)."""
    allowed = devices(spec)
    properties = [
        *("PIDs", "au", "1", str(pid)),
        *("Description", "s", f"QEMU of {spec.name}, protected by colo-ebpf"),
        *("CollectMode", "s", "inactive-or-failed"),
        *("MemoryMax", "t", str(memory_bytes(spec, overlays_bytes))),
        *("TasksMax", "t", str(tasks(spec))),
        *("DevicePolicy", "s", "closed"),
        *("DeviceAllow", "a(ss)", str(len(allowed))),
        *(word for one in allowed for word in one),
    ]
    name = f"colo-ebpf-vm-{spec.name}-{pid}.scope"
    return [
        *("busctl", "--quiet", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"),
        *("org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"),
        *(name, "fail", "7", *properties, "0"),
    ]


class Scope:
    """Of the QEMUs of one VM."""

    def __init__(self, spec: VmSpec, systemd: Path = _SYSTEMD) -> None:
        self._spec, self._systemd = spec, systemd
        self._told = False

    async def hold(self, pid: int) -> None:
        """Put a QEMU into one of its own. A VM without bounds is better than none: what goes wrong
        is said, and no more."""
        failure = await self._ask(pid) if self._systemd.exists() else "systemd does not run here"
        if failure and not self._told:
            self._told = True
            _log.warning("QEMU has no bounds of memory, tasks and devices: %s", failure)

    async def _ask(self, pid: int) -> str:
        """What went wrong ("": nothing)."""
        overlays = sum(
            2 * (disk.overlay_limit_bytes or overlay.free_bytes(disk.overlay_dir))
            for disk in self._spec.replicated
        )
        try:
            process = await asyncio.create_subprocess_exec(
                *request(self._spec, pid, overlays),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as e:
            return f"busctl: {e.strerror}"
        try:
            async with asyncio.timeout(_ANSWER_S):
                _, said = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"systemd does not answer within {_ANSWER_S:g} s"
        return said.decode(errors="replace").strip() if process.returncode else ""
