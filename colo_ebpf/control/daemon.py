# SPDX-License-Identifier: GPL-2.0-only
"""The daemon of one VM on one host: `Core` wired to clock, sockets, QEMU and the kernel.

Every `heartbeat` the loop sees to it that the data plane beats, decides and says how it is; while
nothing happens it decides nothing, and sleeps for three. All else is an event: a datagram,
a ring buffer record, a QMP event, the exit of QEMU, a step's end. Ending the daemon leaves VM,
programs and maps as they are; the next run adopts them.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import secrets
import signal
from collections.abc import Coroutine
from pathlib import Path as FilePath
from typing import IO, Any

from colo_ebpf.clock import boot_ns
from colo_ebpf.config import Config
from colo_ebpf.control import accel, settings
from colo_ebpf.control.arbiters import arbiter_of
from colo_ebpf.control.core import Core
from colo_ebpf.control.ctl import ControlServer
from colo_ebpf.control.datagram import Seal
from colo_ebpf.control.epoch import Command, Do
from colo_ebpf.control.epoch_secondary import Note
from colo_ebpf.control.facts import FenceWhen, Step
from colo_ebpf.control.heartbeat import Heartbeats, Wire
from colo_ebpf.control.machine import QemuMachine
from colo_ebpf.control.notefile import NoteFile
from colo_ebpf.control.notify import Notifier
from colo_ebpf.control.pause import Pause, PauseFile
from colo_ebpf.control.peer import Path, PeerView, Speech
from colo_ebpf.control.ports import Vm
from colo_ebpf.control.privileges import keep_only_needed
from colo_ebpf.control.pulse import Pulse, loop_of
from colo_ebpf.control.record import GenerationFloor, Record
from colo_ebpf.control.report import status
from colo_ebpf.control.steps import Steps
from colo_ebpf.control.unfinished import Unfinished
from colo_ebpf.control.vm import Qemu
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.errors import ColoError, ControlError
from colo_ebpf.model import Endpoints, Mode, PlaneEvent, VmEvent, VmRole

_log = logging.getLogger(__name__)
_LEAVING_COPIES = 3
_CHORES_EVERY_NS = 200_000_000  # watchdogs, and whether QEMU hangs


class Daemon:
    """One run. Implements `ports.Effects`."""

    def __init__(
        self, config: Config, plane: DataPlane, machine: QemuMachine, why: str, pulse: Pulse
    ) -> None:
        self.config, self.plane, self.machine = config, plane, machine
        self._pulse = pulse
        self.accel_why = why
        self.timing = settings.timing(config)
        self._who = settings.who(config)
        self._seal = Seal(settings.key(config))
        self._speech = Speech(self._seal)
        self._notes = NoteFile(FilePath(config.host.run_dir) / "turns.json")
        self._pause = PauseFile(FilePath(config.host.state_dir))
        self._notifier = Notifier()
        self._watchdog = settings.watchdog(config)
        self._tasks: set[asyncio.Task[None]] = set()
        self._step_task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._chores_due_ns = 0
        self.core: Core
        self.steps = Steps(
            plane,
            machine,
            arbiter_of(config),
            floor=GenerationFloor(FilePath(config.host.state_dir)),
            unfinished=Unfinished(FilePath(config.host.state_dir)),
            peer_address=config.peer.link_address,
            current=lambda: self.core.vm,
            started=self._vm_started,
            folded=self._offsets_folded,
            fence=settings.fence(config).run,
        )
        link, management = config.link, config.management
        self._beats = Heartbeats(
            (
                Wire(Path.LINK, link.address, config.peer.link_address, link.heartbeat_port),
                Wire(
                    Path.MANAGEMENT,
                    management.address,
                    config.peer.management_address,
                    link.heartbeat_port,
                ),
            ),
            pulse,
            lambda datagram, path: self.core.peer_datagram(datagram, path, boot_ns()),
            lambda path: self.core.peer_refused(path, boot_ns()),
        )

    # -- life ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await self._begin()
        server = ControlServer(self, FilePath(self.config.host.run_dir) / "ctl.sock")
        await server.start()
        gc.collect()
        gc.freeze()  # a full collection would take longer than a heartbeat
        self._notifier.say(READY=1)
        beats = self._pulse.beat(self.core.calm.next_beat_ns, self._beat)
        stopping = asyncio.create_task(self._stopping.wait())
        stopping.add_done_callback(lambda _: self._pulse.rest())
        try:
            await beats
            self._watchdog.disarm()
        finally:
            stopping.cancel()
            await server.stop()
            self._leave()

    async def _begin(self) -> None:
        now_ns = boot_ns()
        await self.plane.prepare()
        vm = await self.machine.adopt()
        note = self._notes.load(vm.instance) if vm else None
        peer = PeerView(
            vm=self._who.vm,
            host=self._who.peer,
            boot=secrets.token_hex(8),
            seal=self._seal,
            started_ns=now_ns,
            report=_log.warning,
        )
        self.core = Core(
            self._who,
            self.timing,
            self.plane,
            self,
            peer,
            now_ns=now_ns,
            note=note,
            pause=self._pause.load(),
            fence=FenceWhen(self.config.fence.when),
            log=self._say,
        )
        if vm is not None:
            await self._adopt(vm)
        # Not before: what the plane told while no daemon ran would be decided on without the VM.
        self.plane.subscribe(self._plane_event)

    async def _adopt(self, vm: Qemu) -> None:
        """The QEMU that an earlier daemon left running."""
        _log.info("adopted %s (pid %d)", vm.instance, vm.pid)
        primary = self.plane.mode() in (Mode.PAIRING, Mode.PRIMARY)
        await self.plane.take_role(VmRole.PRIMARY if primary else vm.role)
        self._listen_to(vm)
        failed = await vm.failed_requests() > 0
        off = await vm.powered_off()
        self.core.adopt(vm, vm.past(), failed=failed, off=off, now_ns=boot_ns())
        if self.plane.mode() in (Mode.SECONDARY, Mode.WITHHOLD):  # it does not serve yet
            vm.tell_missed()

    def _plane_event(self, event: PlaneEvent) -> None:
        self.core.plane_event(event, boot_ns())

    def _beat(self, now_ns: int) -> bool:
        self.plane.beat(now_ns)
        decided = self.core.beat(now_ns)
        said = self.core.said
        assert said is not None, "the first beat decides, and a decision is told"
        self._beats.send(self._speech.say(said))
        self.plane.reap(now_ns)
        if now_ns < self._chores_due_ns:
            return decided
        self._chores_due_ns = now_ns + _CHORES_EVERY_NS
        return self._do_chores(now_ns) or decided

    def _do_chores(self, now_ns: int) -> bool:
        self._notifier.feed(now_ns)
        self._watchdog.feed(self.plane.mode(), now_ns)
        vm = self.core.vm
        return vm is not None and vm.look()

    def _leave(self) -> None:
        """The peer is told; VM and data plane go on without us."""
        self._notifier.say(STOPPING=1)
        self.core.leaving = True
        self.publish(_LEAVING_COPIES)
        for task in self._tasks:
            task.cancel()
        self._beats.close()
        _log.info("ended; the VM and its data plane go on")

    def _say(self, sentence: str) -> None:
        _log.info("%s", sentence)
        self._notifier.say(STATUS=sentence)

    # -- the VM --------------------------------------------------------------------------

    def _vm_started(self, vm: Vm, endpoints: Endpoints | None) -> None:
        self._listen_to(vm)
        self.core.vm_started(vm, endpoints)

    def _offsets_folded(self, entries: list[bytes]) -> None:
        self.core.offsets.offer(entries)

    def _listen_to(self, vm: Vm) -> None:
        def on_event(event: VmEvent) -> None:
            self.core.vm_event(vm, event, boot_ns())

        vm.subscribe(on_event)

    # -- ports.Effects --------------------------------------------------------------------

    def start_step(self, step: Step) -> None:
        """Run it in a task; its outcome goes back to the core."""
        self._step_task = self._spawn(self._run_step(step))

    async def _run_step(self, step: Step) -> None:
        record: Record | None = None
        error: ColoError | None = None
        try:
            record = await self.steps.run(step)
        except ColoError as e:
            error = e
        except asyncio.CancelledError:
            if self._stopping.is_set():
                raise
            error = ControlError(f"{type(step).__name__} was given up")
        except Exception as e:
            _log.exception("%s failed in an unforeseen way", type(step).__name__)
            error = ControlError(f"{type(step).__name__}: {e!r}")
        if error is not None:
            _log.info("%s: %s", type(step).__name__, error)
        self.core.step_done(step, record, error, boot_ns())

    def cancel_step(self) -> None:
        """Give up the pairing step under way."""
        if self._step_task is not None:
            self._step_task.cancel()

    def command(self, vm: Vm, command: Command) -> None:
        """Run a checkpoint's command in a task."""
        self._spawn(self._run_command(vm, command))

    async def _run_command(self, vm: Vm, command: Command) -> None:
        stopped, error = False, ""
        try:
            if command.what is Do.TRIGGER:
                await vm.trigger_checkpoint()
            elif command.what is Do.STOP_VM:
                await vm.stop()
            else:
                stopped = not await vm.running()
        except ColoError as e:
            error = str(e)
        self.core.command_done(command, stopped, error, boot_ns())

    def publish(self, copies: int) -> None:
        """Send the state on both paths."""
        state = self.core.my_state()
        for _ in range(copies):
            self._beats.send(self._speech.say(state))

    def keep_note(self, note: Note) -> None:
        """Over a restart."""
        if self.core.vm is not None:
            self._notes.keep(self.core.vm.instance, note)

    def keep_pause(self, pause: Pause) -> None:
        """Over restarts; without it a restart of both daemons ends the pause."""
        try:
            self._pause.keep(pause)
        except ControlError as e:
            _log.warning("%s: a restart of both daemons will forget this", e)

    def token(self) -> str:
        """Of VNIs and instances."""
        return secrets.token_hex(8)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- what the control socket asks ----------------------------------------------------

    def status(self) -> dict[str, Any]:
        """See report.status."""
        return status(self, boot_ns())


def _lock(run_dir: FilePath) -> IO[str]:
    """One daemon per run directory, for as long as the file stays open."""
    path = run_dir / "daemon.lock"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as e:
        raise ControlError(f"cannot open {path}: {e.strerror}") from e
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise ControlError(
            f"{path}: a daemon runs already here (pid {holder}): stop it first, or give this one "
            "another host.run-dir"
        ) from e
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _realtime(priority: int) -> None:
    """Ahead of what else the host runs; children (QEMU) start without it."""
    if not priority:
        return
    policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except PermissionError:
        _log.warning("no real-time priority (CAP_SYS_NICE): failures are noticed less exactly")


def serve(config: Config) -> None:
    """Everything `colo-ebpf run` does. Raises ColoError."""
    settings.key(config)
    lock = _lock(FilePath(config.host.run_dir))
    try:
        FilePath(config.host.state_dir).mkdir(parents=True, exist_ok=True)
        settings.watchdog(config).check()
        _log.info("loading the data plane of %s", config.vm.name)
        plane = DataPlane.open(settings.plane_spec(config))
        keep_only_needed()
        _realtime(config.start.realtime_priority)
        _serve(config, plane)
    finally:
        lock.close()


def _serve(config: Config, plane: DataPlane) -> None:
    pulse = Pulse()

    async def run() -> None:
        vm, cache_dir = config.vm, FilePath(config.host.cache_dir)
        chosen, why = await accel.choose(vm.accel, vm.qemu, vm.kernel, cache_dir)
        _log.info("accelerator: %s (%s)", chosen, why)
        machine = QemuMachine(settings.vm_spec(config, chosen))
        await Daemon(config, plane, machine, why, pulse).run()

    with asyncio.Runner(loop_factory=lambda: loop_of(pulse)) as runner:
        runner.run(run())
