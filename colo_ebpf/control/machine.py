# SPDX-License-Identifier: GPL-2.0-only
"""Start, find and check QEMUs: port `Machine`.

A QEMU is started in a session of its own and outlives the daemon. `<run_dir>/qemu.pid` says where
it is, its `-name` which VM and instance it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.control import cmdline
from colo_ebpf.control.cmdline import VmSpec
from colo_ebpf.control.eventlog import EventLog
from colo_ebpf.control.lineage import Lineage
from colo_ebpf.control.taps import Taps
from colo_ebpf.control.vm import Qemu
from colo_ebpf.errors import QmpError, VmError
from colo_ebpf.model import VmRole
from colo_ebpf.storage import image

_log = logging.getLogger(__name__)
_LOG_TAIL_BYTES = 2000
_LOGS = ("colo-*.trace", "colo-*.sum", "events-*")  # of one instance each


@dataclass(frozen=True, slots=True)
class QemuFacts:
    """What is known of a QEMU binary."""

    version: tuple[int, int]
    known_good: bool
    why: str


def judge_version(text: str) -> QemuFacts:
    """From the first line of `qemu --version`; which versions run COLO is QEMU's history."""
    match = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", text)
    if not match:
        raise VmError(f"QEMU: no version in {text!r}")
    version = (int(match[1]), int(match[2]))
    micro = int(match[3] or 0)
    if (8, 2) <= version < (9, 1):
        return QemuFacts(version, False, "the secondary aborts on entering COLO (8.2 to 9.0)")
    if version in ((10, 0), (10, 1)) and not (version == (10, 0) and micro >= 13):
        return QemuFacts(version, False, "the primary never enters COLO (10.0 and 10.1)")
    return QemuFacts(version, True, "COLO is known to work")


async def probe_qemu(binary: str) -> QemuFacts:
    """Ask a binary for its version; VmError if it cannot be run."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(binary, "--version"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as e:
        raise VmError(f"QEMU {binary}: {e.strerror}; install qemu-system-x86") from e
    out, _ = await process.communicate()
    return judge_version(out.decode(errors="replace"))


class QemuMachine:
    """The QEMUs of one VM on this host."""

    def __init__(self, spec: VmSpec) -> None:
        self._spec = spec
        self._pid_file = spec.run_dir / "qemu.pid"
        self._taps = Taps()

    @property
    def accel(self) -> str:
        """The accelerator QEMU is started with."""
        return self._spec.accel

    async def start(self, role: VmRole, instance: str) -> Qemu:
        """Start QEMU and connect to its monitors; VmError has the end of its log."""
        spec = self._spec
        for disk in spec.disks:
            facts = await asyncio.to_thread(image.inspect, disk.path, disk.format)
            if role is VmRole.SECONDARY:
                size_bytes = facts.virtual_bytes
                await asyncio.to_thread(image.make_overlays, disk.overlays, size_bytes)
        for path in (cmdline.monitor_path(spec), cmdline.oob_path(spec), *self._logs()):
            path.unlink(missing_ok=True)
        if role is VmRole.SECONDARY:
            Lineage.of(spec).begin(instance)
        else:
            Lineage.of(spec).end()
        EventLog(cmdline.events_path(spec, instance)).make()
        self._taps.close()
        for tap, _ in spec.nics:
            self._taps.open(tap)
        pid = await self._spawn(cmdline.command_line(spec, role, instance, self._taps.fds))
        self._pid_file.write_text(f"{pid} {role.value} {instance}\n")
        vm = Qemu(spec, role, instance, pid, self._taps)
        try:
            await self._connect(vm)
            await vm.require_colo()
        except BaseException as e:
            await vm.kill()
            if isinstance(e, (QmpError, TimeoutError)):
                raise VmError(f"QEMU {instance}: did not start: {e}\n{self._log_tail()}") from e
            raise
        return vm

    def _logs(self) -> list[Path]:
        """Traces and events of QEMUs before this one."""
        run_dir = self._spec.run_dir
        return [path for kind in _LOGS for path in run_dir.glob(kind)]

    async def _spawn(self, argv: list[str]) -> int:
        spec = self._spec
        environment = dict(os.environ)
        if spec.preload and spec.accel == "tcg":
            environment["LD_PRELOAD"] = spec.preload
        with (spec.run_dir / "qemu.log").open("ab") as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=environment,
                    pass_fds=self._taps.fds,
                )
            except OSError as e:
                raise VmError(f"QEMU {argv[0]}: {e.strerror}; install qemu-system-x86") from e
        return process.pid

    async def _connect(self, vm: Qemu) -> None:
        paths = (cmdline.monitor_path(self._spec), cmdline.oob_path(self._spec))
        async with asyncio.timeout(self._spec.start_timeout_ms / 1000):
            while not all(path.exists() for path in paths):
                if not vm.alive:
                    raise QmpError("it ended at once")
                await asyncio.sleep(0.01)  # a socket file has no event before its listener
            await vm.connect()

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            data = (self._spec.run_dir / "qemu.log").read_bytes()
            return data[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return ""

    async def adopt(self) -> Qemu | None:
        """The QEMU an earlier daemon left running; one that cannot be asked is ended."""
        try:
            pid_text, role, instance = self._pid_file.read_text().split()
        except (OSError, ValueError):
            return None
        pid = int(pid_text)
        if not _is_ours(pid, f"{self._spec.name}@{instance}"):
            return None
        vm = Qemu(self._spec, VmRole(role), instance, pid, self._taps)
        try:
            await vm.connect()
            await vm.check_name()
        except QmpError as e:
            _log.warning("QEMU %s (pid %d) cannot be adopted and is ended: %s", instance, pid, e)
            await vm.kill()
            return None
        return vm


def _is_ours(pid: int, name: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return name.encode() in words


def end_by_pid(pid: int) -> None:
    """SIGKILL a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
