# SPDX-License-Identifier: GPL-2.0-only
"""Start, find and check QEMUs: `interfaces.Machine`.

A QEMU is started in a session of its own, as a user of its own, and outlives the daemon. It is
given descriptors and files that are made for it; it can make none. `<run_dir>/qemu.pid` says where
it is, its `-name` which VM and instance it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import IO

from colo_ebpf.control.host import access
from colo_ebpf.control.qemu import cmdline, error_log, support, vhost
from colo_ebpf.control.qemu.bounded_log import BoundedLog
from colo_ebpf.control.qemu.cmdline import VmSpec
from colo_ebpf.control.qemu.event_log import EventLog
from colo_ebpf.control.qemu.listening import listen
from colo_ebpf.control.qemu.scope import Scope
from colo_ebpf.control.qemu.starter import Starter
from colo_ebpf.control.qemu.taps import Taps
from colo_ebpf.control.qemu.vm import Qemu, data_generation_of
from colo_ebpf.control.state import atomic
from colo_ebpf.errors import QmpError, VmError
from colo_ebpf.model import VmRole
from colo_ebpf.storage import image

_log = logging.getLogger(__name__)
_ENDS_S = 1.0  # after its sockets are closed
_LOGS = ("colo-*.trace", "colo-*.sum", "events-*")  # of one instance each


class QemuMachine:
    """The QEMUs of one VM on this host."""

    def __init__(self, spec: VmSpec, starter: Starter | None = None) -> None:
        """`starter`: for another user than root."""
        self._spec, self._starter = spec, starter or Starter()
        self._scope = Scope(spec)
        self._pid_file = spec.run_dir / "qemu.pid"
        self._taps = Taps()

    @property
    def accel(self) -> str:
        """The accelerator QEMU is started with."""
        return self._spec.accel

    async def start(self, role: VmRole, instance: str) -> Qemu:
        """Start QEMU and connect to its monitors; VmError has the end of its log."""
        spec = self._spec
        protocols = []
        for disk in spec.disks:
            facts = await asyncio.to_thread(
                image.inspect, disk.path, disk.format, disk.sector_bytes, readonly=disk.readonly
            )
            protocols.append(facts.protocol)
            if role is VmRole.SECONDARY and not disk.readonly:
                size_bytes = facts.virtual_bytes
                await asyncio.to_thread(image.make_overlays, disk.overlays, size_bytes)
        self._clear()
        if role is VmRole.SECONDARY:
            data_generation_of(spec).begin(instance)
        else:
            data_generation_of(spec).end()
        await asyncio.to_thread(self._make_files, instance)
        await self._let_in(role)
        log = cmdline.log_path(spec)
        log_from = error_log.size(log)
        self._taps.close()
        for nic in spec.nics:
            await asyncio.to_thread(self._taps.open, nic.tap, nic.queues)
        pid = await self._spawn(cmdline.command_line(spec, role, instance, protocols))
        await self._scope.hold(pid)
        try:
            vm = Qemu(
                spec, role, instance, pid, self._taps, starter=self._starter, log_from=log_from
            )
        except ProcessLookupError as e:
            self._taps.close()
            ended = f"QEMU {instance}: did not start: it ended at once"
            raise VmError(f"{ended}\n{error_log.tail(log, log_from)}") from e
        try:
            self._write_pid(vm)
            await self._connect(vm)
            await vm.require_colo()
        except BaseException as e:
            await vm.kill()
            if isinstance(e, (QmpError, TimeoutError)):
                raise VmError(f"QEMU {instance}: did not start: {e}\n{vm.last_words()}") from e
            raise
        return vm

    def _clear(self) -> None:
        """What a QEMU before this one has left. VmError if it cannot be removed."""
        spec = self._spec
        BoundedLog(cmdline.console_log_path(spec)).begin()
        try:
            for path in (cmdline.monitor_path(spec), cmdline.oob_path(spec), *self._logs()):
                path.unlink(missing_ok=True)
        except OSError as e:
            raise VmError(f"cannot remove {e.filename}: {e.strerror}") from e

    def _make_files(self, instance: str) -> None:
        """What QEMU writes to."""
        spec, user = self._spec, self._starter.user
        events = EventLog(cmdline.events_path(spec, instance))
        events.make()
        for path in events.files:
            access.grant(path, user)
        own = cmdline.own_directory(spec)
        try:
            own.mkdir(mode=0o700, exist_ok=True)
        except OSError as e:
            raise VmError(f"cannot make {own}: {e.strerror}") from e
        access.grant(own, user, "rwx")
        for path in (cmdline.trace_path(spec, instance), cmdline.console_log_path(spec)):
            access.make(path, user)

    async def _let_in(self, role: VmRole) -> None:
        """QEMU's user may open what the VM is made of. VmError says what it cannot open."""
        spec, user = self._spec, self._starter.user
        if user is None:
            return
        writable = [disk.path for disk in spec.replicated]
        readable = [disk.path for disk in spec.disks if disk.readonly]
        readable += [Path(path) for path in (spec.kernel, spec.initrd) if path]
        if spec.firmware is not None:
            readable.append(spec.firmware[0])
            writable.append(spec.firmware[1])
        if role is VmRole.SECONDARY:
            writable += [path for disk in spec.replicated for path in disk.overlays]
        if spec.accel == "kvm":
            writable.append(Path("/dev/kvm"))
        for path in writable:
            await asyncio.to_thread(access.grant, path, user)
        for path in readable:
            await asyncio.to_thread(access.grant, path, user, "r")
        asked = [(path, path in writable) for path in (*writable, *readable)]
        if refused := await self._starter.closed_ways(asked):
            raise VmError(f"QEMU, which is user {user.uid}: " + "\n".join(refused))

    def _write_pid(self, vm: Qemu) -> None:
        """Without it the next daemon would not find the VM. VmError if it cannot be written."""
        try:
            with atomic.noted(self._pid_file):
                self._pid_file.write_text(f"{vm.pid} {vm.role.value} {vm.instance}\n")
        except OSError as e:
            raise VmError(f"cannot write {self._pid_file}: {e.strerror}") from e

    def _logs(self) -> list[Path]:
        """Traces and events of QEMUs before this one."""
        run_dir = self._spec.run_dir
        return [path for kind in _LOGS for path in run_dir.glob(kind)]

    async def _spawn(self, argv: list[str]) -> int:
        spec = self._spec
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self._open_log()).fileno()
            fds = {1: log, 2: log}
            for number, path in (
                (cmdline.MONITOR_FD, cmdline.monitor_path(spec)),
                (cmdline.OOB_FD, cmdline.oob_path(spec)),
                (cmdline.CONSOLE_FD, cmdline.console_path(spec)),
            ):
                fds[number] = stack.enter_context(listen(path)).fileno()
            devices = (*self._taps.fds, *stack.enter_context(vhost.opened(spec.nics)))
            locks = [stack.enter_context(image.no_other_writer(d.path)) for d in spec.shared_disks]
            fds |= {cmdline.TAP_FD + n: fd for n, fd in enumerate((*devices, *locks))}
            try:
                env = support.environment(support.use_of(spec))
                return await self._starter.start(argv, env, fds)
            except OSError as e:
                raise VmError(f"QEMU {argv[0]}: {e.strerror}; install qemu-system-x86") from e

    def _open_log(self) -> IO[bytes]:
        path = cmdline.log_path(self._spec)
        try:
            with atomic.noted(path):
                return path.open("ab")
        except OSError as e:
            raise VmError(f"cannot write {path}: {e.strerror}") from e

    async def _connect(self, vm: Qemu) -> None:
        """It answers once it has made all of the VM; its sockets are there before."""
        try:
            await vm.connect(self._spec.start_timeout_ms)
        except QmpError as e:
            if await vm.ended(_ENDS_S):
                raise QmpError("it ended at once") from e
            raise

    async def adopt(self) -> Qemu | None:
        """The QEMU an earlier daemon left running; one that cannot be asked is ended."""
        try:
            pid_text, role, instance = self._pid_file.read_text().split()
        except (OSError, ValueError):
            return None
        pid = int(pid_text)
        if not _is_ours(pid, f"{self._spec.name}@{instance}"):
            return None
        vm = Qemu(self._spec, VmRole(role), instance, pid, self._taps, starter=self._starter)
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
