# SPDX-License-Identifier: GPL-2.0-only
"""The daemon of one VM on one host: `Core` wired to clock, sockets, QEMU and the kernel.

Every `heartbeat` the loop sees to it that the data plane beats, decides and says how it is; while
nothing happens it decides nothing, and sleeps for three. All else is an event: a datagram,
a ring buffer record, a QMP event, the exit of QEMU, a step's end. Ending the daemon leaves VM,
programs and maps as they are; the next run adopts them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import signal
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path as FilePath
from typing import Any

from colo_ebpf.clock import ago_ns, boot_ns
from colo_ebpf.config.schema import Config
from colo_ebpf.control import settings
from colo_ebpf.control.admin import control_socket, operations
from colo_ebpf.control.admin.samples import Samples
from colo_ebpf.control.admin.server import ControlServer
from colo_ebpf.control.admin.status import status
from colo_ebpf.control.arbiter import watch
from colo_ebpf.control.arbiter.factory import arbiter_of
from colo_ebpf.control.checkpoint.primary import Command, Do
from colo_ebpf.control.checkpoint.secondary import Note
from colo_ebpf.control.core.core import Core
from colo_ebpf.control.decision.actions import Decision, State, Step
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.decision.snapshot import MS, FenceWhen
from colo_ebpf.control.executor import Steps
from colo_ebpf.control.host import sockets
from colo_ebpf.control.host.state_events import Change
from colo_ebpf.control.host.systemd import Notifier
from colo_ebpf.control.interfaces import Vm
from colo_ebpf.control.key_keeper import KeyKeeper
from colo_ebpf.control.link_seal import LinkSeal
from colo_ebpf.control.link_security import Seals
from colo_ebpf.control.link_tunnel import LinkTunnel
from colo_ebpf.control.loop import BeatSelector
from colo_ebpf.control.peer.envelope import Seal
from colo_ebpf.control.peer.pause import Pause
from colo_ebpf.control.peer.state import Path, PeerView, Speech
from colo_ebpf.control.peer.transport import Heartbeats, Wire
from colo_ebpf.control.qemu.process import QemuMachine
from colo_ebpf.control.qemu.stalls import StallWatch
from colo_ebpf.control.qemu.vm import Qemu
from colo_ebpf.control.repair import Mender
from colo_ebpf.control.state.files import GenerationFloor, NoteFile, PauseFile
from colo_ebpf.control.state.history import History
from colo_ebpf.control.state.history_file import HistoryFile
from colo_ebpf.control.state.inconsistent import InconsistentImages
from colo_ebpf.datapath.net import sockdiag
from colo_ebpf.datapath.net.tunnel import Security
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.errors import ColoError, ControlError
from colo_ebpf.model import Endpoints, Lack, Mode, PlaneEvent, VmEvent, VmRole

_log = logging.getLogger(__name__)
_LEAVING_COPIES = 3
_REWRITE_EVERY_NS = 5_000_000_000
_CHORES_EVERY_NS = 200_000_000  # watchdogs, and whether QEMU hangs


class Daemon:
    """One run. Implements `interfaces.Effects`."""

    def __init__(
        self,
        config: Config,
        plane: DataPlane,
        machine: QemuMachine,
        why: str,
        selector: BeatSelector,
        *,
        compatibility: Mapping[str, str],
        security: Security,
    ) -> None:
        self.config, self.plane, self.machine = config, plane, machine
        self._security, self._carried = security, settings.carried(config, security)
        self._selector = selector
        self.accel_why = why
        self.timing = settings.deadlines(config.timing, config.checkpoint)
        self._who = replace(settings.who(config, security), compatibility=compatibility)
        self._seal = Seal(*settings.key_ring(config).heard)
        self._speech = Speech(self._seal)
        self._notes = NoteFile(FilePath(config.host.run_dir) / "turns.json")
        self._pause = PauseFile(FilePath(config.host.state_dir))
        self._notifier = Notifier()
        self._watchdog = settings.watchdog(config)
        self._events = settings.events(config)
        self._history = History(config.host.name)
        self._history_file = HistoryFile(FilePath(config.host.state_dir))
        self.samples = Samples()
        self._floor = GenerationFloor(FilePath(config.host.state_dir))
        self._kept_files = (self._floor.file, self._pause.file)
        self._rewriting: asyncio.Task[None] | None = None
        self._rewrite_due_ns = 0
        self._arbiter = arbiter_of(config, keeps_room=True)
        self._stalls = StallWatch(
            settings.secondary(self._carried), config.timing.hang_timeout_ms, sockdiag.sending
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._step_task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._chores_due_ns = 0
        self._mender = Mender(plane, self._plane_looked_at)
        self.link: Seals | None = None
        self.keys: KeyKeeper
        self.core: Core
        self.steps = Steps(
            plane,
            machine,
            self._arbiter,
            floor=self._floor,
            inconsistent=InconsistentImages(FilePath(config.host.state_dir)),
            peer_address=self._carried.peer.link_address,
            current=lambda: self.core.vm,
            started=self._vm_started,
            folded=self._offsets_folded,
            fence=settings.fence(config).run,
            reserve=settings.reservations(config).take,
            copies=len(config.vm.shared_disks) < len(config.vm.disk),
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
            selector,
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
        self._spawn(self._mender.run())
        self._spawn(watch.watch(self._arbiter, self._arbiter_looked_at))
        self._spawn(self._stalls.run(self._connects_to, self._stalled))
        server = ControlServer(self, control_socket.path_in(self.config.host.run_dir))
        await server.start()
        gc.collect()
        gc.freeze()  # a full collection would take longer than a heartbeat
        self._notifier.say(READY=1)
        beats = self._selector.beat(self.core.idle_detector.next_beat_ns, self._beat)
        stopping = asyncio.create_task(self._stopping.wait())
        stopping.add_done_callback(lambda _: self._selector.rest())
        self.core.peer.listens(boot_ns())
        try:
            await beats
            self._watchdog.disarm()
        finally:
            stopping.cancel()
            await server.stop()
            self._leave()

    async def _begin(self) -> None:
        await asyncio.to_thread(sockets.await_addresses, self.config)
        sockets.require_free(sockets.of_daemon(self.config))
        self._events.start()
        self._history_file.start()
        now_ns = boot_ns()
        vm = await self.machine.adopt()
        if vm is None:
            sockets.require_free(sockets.of_qemu(self._carried))
        await self.plane.prepare()
        note = self._notes.load(vm.instance) if vm else None
        peer = PeerView(
            vm=self._who.vm,
            host=self._who.peer,
            boot=secrets.token_hex(8),
            seal=self._seal,
            started_ns=now_ns,
            listening=False,
            silence_ns=self.timing.peer_timeout_ns,
            long_ns=self.timing.long_silence_ns,
            rests_ns=self.timing.absent_ns,
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
            changed=self._state_changed,
        )
        self.link = self._link_seal()
        key_files = settings.key_files(self.config)
        read = partial(settings.key_ring, self.config)
        self.keys = KeyKeeper(
            key_files, read, self.core, seal=self._seal, speech=self._speech, link=self.link
        )
        if vm is not None:
            await self._adopt(vm)
        # Not before: what the plane told while no daemon ran would be decided on without the VM.
        self.plane.subscribe(self._plane_event)

    def _link_seal(self) -> Seals | None:
        """None: nothing seals it."""
        match self._security:
            case Security.NONE:
                return None
            case Security.IPSEC:
                return LinkSeal(settings.between(self.config), self.core)
            case Security.WIREGUARD:
                ring, through = settings.key_ring(self.config), settings.through(self.config)
                return LinkTunnel(through, self._who.peer, ring, self.core)

    async def _adopt(self, vm: Qemu) -> None:
        """The QEMU that an earlier daemon left running."""
        _log.info("adopted %s (pid %d)", vm.instance, vm.pid)
        primary = self.plane.mode() in (Mode.PAIRING, Mode.PRIMARY)
        await self.plane.take_role(VmRole.PRIMARY if primary else vm.role)
        if self.plane.mode() in (Mode.PAIRING, Mode.PRIMARY, Mode.SOLO):
            self.plane.serves()
        self._listen_to(vm)
        failed = await vm.failed_requests() > 0
        off = await vm.powered_off()
        self.core.adopt(vm, vm.past(), failed=failed, off=off, now_ns=boot_ns())
        if self.plane.mode() in (Mode.SECONDARY, Mode.WITHHOLD):  # it does not serve yet
            vm.tell_missed()

    def _plane_event(self, event: PlaneEvent) -> None:
        self.core.plane_event(event, boot_ns())

    def _plane_looked_at(self, found: Sequence[Lack], left: Sequence[Lack]) -> None:
        self.core.plane_looked_at(found, left, boot_ns())
        if self.link is not None:
            self.link.look_soon()

    def _connects_to(self) -> bool:
        """There is a secondary, or one is being made, and its host is heard."""
        age_ns = self.core.peer.age_ns(Path.LINK, boot_ns())
        return self.core.has_secondary and age_ns <= self.timing.peer_timeout_ns

    def _arbiter_looked_at(self, error: str) -> None:
        self.core.arbiter_looked_at(error, boot_ns())

    def _stalled(self, why: str) -> None:
        self.core.stalled(why, boot_ns())

    def _beat(self, now_ns: int) -> bool:
        self.plane.beat(now_ns)
        decided = self.core.beat(now_ns)
        said = self.core.published
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
        self._rewrite(now_ns)
        operations.end_pause(self.core, time.time(), now_ns)
        if self.samples.due(now_ns):
            self._sample(now_ns)
        self.keys.look(now_ns)
        self._look_after_link(now_ns)
        harmed = not self.plane.unharmed()
        if harmed:
            self._mender.look_soon()
        vm = self.core.vm
        return (vm is not None and vm.look()) or harmed

    def _look_after_link(self, now_ns: int) -> None:
        match self.link:
            case LinkSeal() as seal if due := seal.due(now_ns):
                self._spawn(seal.do(due, now_ns))
            case LinkTunnel() as tunnel if step := tunnel.due(now_ns):
                self._spawn(tunnel.do(step, now_ns))

    def _sample(self, now_ns: int) -> None:
        """For a report of what was."""
        core, held, primary = self.core, self.plane.held(), self.core.checkpoints.primary
        age_ns = min(core.peer.age_ns(path, now_ns) for path in Path)
        heard = core.peer.state is not None and age_ns <= core.timing.peer_timeout_ns
        self.samples.add(
            at_s=time.time(),
            now_ns=now_ns,
            state=core.decision.state.value,
            peer=core.peer.state.state if heard and core.peer.state else "",
            held_frames=held.frames,
            oldest_ms=0.0 if held.oldest_ns is None else ago_ns(held.oldest_ns, now_ns) / MS,
            by_cause=primary.by_cause,
            recent=primary.recent,
        )

    def _rewrite(self, now_ns: int) -> None:
        """What could not be written is tried again, beside the beats."""
        if now_ns < self._rewrite_due_ns or (
            self._rewriting is not None and not self._rewriting.done()
        ):
            return
        self._rewrite_due_ns = now_ns + _REWRITE_EVERY_NS
        if any(file.unwritten for file in self._kept_files):
            self._rewriting = self._spawn(self._rewrite_all())

    async def _rewrite_all(self) -> None:
        for file in self._kept_files:
            await asyncio.to_thread(file.rewrite)

    def _leave(self) -> None:
        """The peer is told; VM and data plane go on without us."""
        self._notifier.say(STOPPING=1)
        self.core.leaving = True
        self.publish(_LEAVING_COPIES)
        for task in self._tasks:
            task.cancel()
        self._beats.close()
        self._events.end()
        self._history_file.end()
        _log.info("ended; the VM and its data plane go on")

    def _state_changed(self, old: State, new: Decision) -> None:
        record = self.core.record
        generation = record.generation if record else 0
        self._events.tell(Change(old.value, new.state.value, new.sentence, generation))
        core, now_ns = self.core, boot_ns()
        entry = self._history.changed(
            old,
            new.state,
            new.sentence,
            generation=generation,
            asked=core.requests.request is not None or (record is not None and record.given),
            heard_ns=now_ns - min(core.peer.age_ns(path, now_ns) for path in Path),
            now_ns=now_ns,
            at_s=time.time(),
        )
        self._history_file.add(entry)

    def _say(self, sentence: str, level: int) -> None:
        _log.log(level, "%s", sentence)
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

    # -- interfaces.Effects --------------------------------------------------------------------

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
        self._pause.keep(pause)
        core = self.core
        generation = core.record.generation if core.record else 0
        said, state = pause.sentence(), core.decision.state
        entry = self._history.said(said, state=state, generation=generation, at_s=time.time())
        self._history_file.add(entry)

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
        """See `status`."""
        return status(self, boot_ns())
