# SPDX-License-Identifier: GPL-2.0-only
"""One host of the simulation: a real core, a toy data plane and VM, and what can happen to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from colo_ebpf.control import facts
from colo_ebpf.control.core import Core
from colo_ebpf.control.datagram import Seal
from colo_ebpf.control.epoch import Command, Do
from colo_ebpf.control.epoch_secondary import Note
from colo_ebpf.control.pause import Pause
from colo_ebpf.control.peer import Path, PeerView, Speech
from colo_ebpf.control.ports import SwapUnknown
from colo_ebpf.control.record import Record
from colo_ebpf.errors import (
    ArbiterError,
    CannotFenceError,
    ColoError,
    FenceError,
    VmError,
)
from colo_ebpf.model import (
    Endpoints,
    FlushReport,
    HeldReport,
    Lateness,
    Mode,
    Pairing,
    Phase,
    PlaneEvent,
    Turn,
    VmEvent,
    VmEventKind,
    VmRole,
    Waiting,
)
from tests.sim.vm import Session, ToyVm
from tests.sim.world import MS, World

if TYPE_CHECKING:
    from tests.sim.answers import Answers

SEAL = Seal(b"simulated key....")
TIMING = facts.Timing(
    heartbeat_ns=50 * MS,
    peer_timeout_ns=250 * MS,
    qmp_timeout_ns=500 * MS,
    checkpoint_timeout_ns=1_000 * MS,
    daemon_grace_ns=2_000 * MS,
)


class ToyPlane:
    """Mode, turn, pairing. It outlives the daemon."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._mode, self._turn = Mode.WITHHOLD, Turn(0, Phase.OPEN)
        self.pairing: Pairing | None = None
        self.heard_ns = 0
        self._beats, self._beats_until_ns, self.beats_alone = False, 0, True
        self.answers: Answers | None = None

    def set_mode(self, mode: Mode) -> None:
        self._mode = mode

    def mode(self) -> Mode:
        return self._mode

    def set_turn(self, epoch: int, phase: Phase) -> None:
        self._turn = Turn(epoch, phase)

    def turn(self) -> Turn:
        return self._turn

    def set_pairing(self, pairing: Pairing | None) -> None:
        self.pairing, self.heard_ns = pairing, 0

    def keep_offsets(self, epoch: int) -> None: ...

    def learn_offsets(self, entries: list[bytes]) -> None: ...

    def flush(self) -> FlushReport:
        return self.answers.flush() if self.answers else FlushReport(0, 0)

    def repeat(self) -> int:
        return 0

    def held(self) -> HeldReport:
        return HeldReport(0, 0, None, 1)

    def held_frames(self) -> int:
        return len(self.answers.held) if self.answers else 0

    def waiting(self) -> Waiting:
        return self.answers.waiting() if self.answers else Waiting()

    def held_ages(self) -> tuple[int, int]:
        return self.answers.ages() if self.answers else (0, 0)

    def held_ever(self) -> int:
        return self.answers.heads if self.answers else 0

    def compared_frames(self) -> int:
        return self.answers.compared if self.answers else 0

    def lateness(self) -> Lateness:
        return self.answers.lateness() if self.answers else Lateness()

    def loaded(self, at_ns: int) -> None:
        if self.answers:
            self.answers.loaded_ns = at_ns

    def rearm_held(self) -> None:
        if self.answers:
            self.answers.armed = True

    def link_heard_ns(self) -> int:
        return self.heard_ns

    def beat(self, now_ns: int) -> None:
        """By itself, until its daemon has been away for some heartbeats."""
        self._beats_until_ns = now_ns + 5 * TIMING.heartbeat_ns
        if not self._beats:
            self._beats = True
            self._beat()

    def _beat(self) -> None:
        """To the other plane, if both are of one pairing."""
        host, world = self._host, self._host.world
        gone = host.plane is not self or host.now_ns >= self._beats_until_ns
        self._beats = not gone and self.pairing is not None and self._mode is not Mode.SOLO
        if self.pairing is None or not self._beats:
            return
        other, vni = host.other.plane, self.pairing.vni

        def arrive() -> None:
            if other.pairing is not None and other.pairing.vni == vni:
                other.heard_ns = host.other.now_ns

        if (host.name, Path.LINK) not in world.cut:
            world.after(world.delay_ns(0.05, 1), arrive)
        world.after(world.delay_ns(49, 51), self._beat)

    def subscribe(self, callback: Callable[[PlaneEvent], None]) -> None: ...


class Host:
    """A machine with its daemon."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.peer_name = "b" if name == "a" else "a"
        self.up, self.paused, self.yanked = True, False, False
        self.plane = ToyPlane(self)
        self.vm: ToyVm | None = None  # the process, whether or not a daemon knows it
        self.image = 0  # the state its disk would boot into
        self.merged = False  # what the VM writes goes to the image itself
        self.note: Note | None = None
        self.pause_file = Pause()
        self.core: Core | None = None
        self._backlog: list[Callable[[], None]] = []
        self._run = 0  # of the daemon
        self._speech = Speech(SEAL)
        self.beats = self.calm_beats = 0
        self.effects = 0  # that a core asked for
        self._booted_ns = world.now_ns - world.delay_ns(60_000, 10_000_000)
        world.hosts[name] = self

    @property
    def now_ns(self) -> int:
        """Its own boot clock: it has nothing to do with the other one's, and begins anew."""
        return self.world.now_ns - self._booted_ns

    @property
    def other(self) -> Host:
        return self.world.hosts[self.peer_name]

    # -- life ----------------------------------------------------------------------------

    def start_daemon(self) -> None:
        """A new run: adopts the VM and the plane it finds."""
        if self.core is not None or not self.up:
            return
        self._run += 1
        self._beaten_ns = self.now_ns - TIMING.heartbeat_ns
        self._speech = Speech(SEAL)
        boot = f"{self.name}{self._run}-{self.world.random.getrandbits(32):x}"
        peer = PeerView(vm="v", host=self.peer_name, boot=boot, seal=SEAL, started_ns=self.now_ns)
        who = facts.Who("v", self.name, self.peer_name, "192.0.2.9", starts=self.name == "a")
        self.core = Core(
            who,
            TIMING,
            self.plane,  # type: ignore[arg-type]
            self,
            peer,
            now_ns=self.now_ns,
            note=self.note,
            pause=self.pause_file,
            fence=self.world.fence,
            log=lambda sentence: self.world.note(f"{self.name}: {sentence}"),
        )
        if self.vm is not None and self.vm.alive:
            vm, now_ns = self.vm, self.now_ns
            self.core.adopt(
                vm,  # type: ignore[arg-type]
                vm.past(),
                failed=vm.ever_sick,
                off=vm.off,
                now_ns=now_ns,
            )
        self._beat(self._run)

    def _beat(self, run: int) -> None:
        if run != self._run or self.core is None:
            return
        if not self.paused and self.now_ns >= self.core.calm.next_beat_ns(self._beaten_ns):
            self._beaten_ns = self.now_ns
            self.plane.beat(self.now_ns)
            self._decide(self.core)
            self.publish(1)
        self.world.after(self.world.delay_ns(10, 30), lambda: self._beat(run))

    def _decide(self, core: Core) -> None:
        """In every other history what a beat leaves out is done all the same: nothing may come of
        it."""
        calm = core.calm.holds(self.now_ns)
        self.beats += 1
        self.calm_beats += calm
        if not calm or self.world.seed % 2:
            core.beat(self.now_ns)
            return
        before = self._all_that_a_cycle_changes(core)
        core.cycle(self.now_ns)
        after = self._all_that_a_cycle_changes(core)
        assert before == after, f"{self.name} left out more than nothing: {before}, {after}"

    def _all_that_a_cycle_changes(self, core: Core) -> tuple[object, ...]:
        plane, points = self.plane, core.checkpoints
        return (
            (core.decision, core.my_state(), core.running, core.record, core.wishes.wish),
            (plane.mode(), plane.turn(), plane.pairing, self.effects),
            (points.primary.stage, points.primary.pending, points.flush_wanted, points.want),
            (self.note, self.pause_file, tuple(core.history)),
        )

    def kill_daemon(self) -> None:
        """kill -9; VM and plane go on."""
        self.core, self._run = None, self._run + 1
        self._backlog.clear()

    def crash(self) -> None:
        """Power off: everything but the disk is gone."""
        if self.vm is not None:
            self.vm.die()
        self.kill_daemon()
        self.up, self.paused, self.vm, self.note = False, False, None, None
        self.plane = ToyPlane(self)

    def boot(self) -> None:
        """Power on."""
        self.up = True
        self._booted_ns = self.world.now_ns - self.world.delay_ns(500, 5_000)
        self.start_daemon()

    def pause(self) -> None:
        """SIGSTOP to everything."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: what came meanwhile is handled now."""
        self.paused = False
        backlog, self._backlog = self._backlog, []
        for do in backlog:
            do()

    def deliver(self, do: Callable[[], None]) -> None:
        """Now, or when the host goes on."""
        if self.paused:
            self._backlog.append(do)
        else:
            do()

    # -- what reaches the core -----------------------------------------------------------

    def datagram(self, datagram: bytes, path: Path) -> None:
        """From the other daemon."""
        if self.core is None and self.up and not self.paused:
            sender = self.other
            self.world.after(MS, lambda: sender.deliver(lambda: sender.refused(path)))
            return
        self.deliver(lambda: self._receive(datagram, path))

    def _receive(self, datagram: bytes, path: Path) -> None:
        if self.core is not None:
            self.core.peer_datagram(datagram, path, self.now_ns)

    def refused(self, path: Path) -> None:
        """The other host has no daemon."""
        if self.core is not None:
            self.core.peer_refused(path, self.now_ns)

    def vm_event(self, vm: ToyVm, event: VmEvent) -> None:
        """Of our QEMU."""
        if self.core is not None:
            self.core.vm_event(vm, event, self.now_ns)  # type: ignore[arg-type]

    # -- ports.Effects --------------------------------------------------------------------

    def publish(self, copies: int) -> None:
        """On both paths."""
        self.effects += 1
        if self.core is None:
            return
        for _ in range(copies):
            datagram = self._speech.say(self.core.my_state())
            for path in Path:
                self.world.send(self.name, path, datagram)

    def keep_note(self, note: Note) -> None:
        """Over a restart."""
        self.note = note

    def keep_pause(self, pause: Pause) -> None:
        """On the disk."""
        self.pause_file = pause

    def token(self) -> str:
        """16 digits."""
        return f"{self.world.random.getrandbits(64):016x}"

    def cancel_step(self) -> None:
        """Steps are short here."""

    def command(self, vm: object, command: Command) -> None:
        """On QEMU's monitor."""
        self.effects += 1
        assert isinstance(vm, ToyVm)
        run = self._run

        def answer() -> None:
            stopped = vm.stopped
            if command.what is Do.TRIGGER and vm.session is not None:
                vm.session.trigger()
            elif command.what is Do.STOP_VM and not vm.stopped:
                vm.stopped = stopped = True
                vm.emit(VmEventKind.STOP)
            if run == self._run and self.core is not None:
                error = "" if vm.alive else "monitor lost"
                self.core.command_done(command, stopped, error, self.now_ns)

        self.world.after(self.world.delay_ns(0.1, 3), lambda: self.deliver(answer))

    def start_step(self, step: facts.Step) -> None:
        """In its time."""
        self.effects += 1
        run = self._run
        slow = isinstance(step, facts.StartVm | facts.Synchronise | facts.EnterColo | facts.Fence)
        delay_ns = self.world.delay_ns(30, 200) if slow else self.world.delay_ns(0.3, 20)

        def finish() -> None:
            if run == self._run and self.core is not None:
                self._finish(step)

        self.world.after(delay_ns, lambda: self.deliver(finish))

    def _finish(self, step: facts.Step) -> None:
        assert self.core is not None
        record: Record | None = None
        error: ColoError | None = None
        try:
            record = self._carry_out(step)
        except ColoError as e:
            error = e
        self.core.step_done(step, record, error, self.now_ns)

    def _carry_out(self, step: facts.Step) -> Record | None:
        match step:
            case facts.Read():
                self._reach_arbiter()
                return self.world.record
            case facts.Swap(old, new):
                return self._swap(old, new)
            case facts.StartVm(role, instance):
                self._start(role, instance)
            case facts.EndVm(instance):
                if self.vm is not None and self.vm.instance == instance:
                    self.vm.die()
                    self.vm = None
            case facts.Fence(peer):
                assert peer == self.peer_name
                self._fence()
            case _:
                self._with_vm(step)
        return None

    def _reach_arbiter(self) -> None:
        if self.name in self.world.arbiter_cut:
            raise ArbiterError("the arbiter does not answer")

    def _swap(self, old: Record, new: Record) -> Record:
        if self.name in self.world.arbiter_cut:
            if self.world.random.random() < 0.3:  # it was written, and nobody was told
                self.world.swap(self.name, old, new)
            raise SwapUnknown("the arbiter does not answer")
        return self.world.swap(self.name, old, new)

    def _fence(self) -> None:
        """It works, or does nothing, or works and says that it failed, or cannot."""
        chance = 0.0 if self.world.fence_works else self.world.random.random()
        if chance < 0.6:
            self._power_off_other()
            if chance < 0.4:
                self.world.fenced.add(self.peer_name)
                return
        if chance > 0.95:
            raise CannotFenceError("the other host has no switch")
        raise FenceError("the switch does not answer")

    def _power_off_other(self) -> None:
        assert not self.world.given, f"{self.peer_name} handed over and is fenced"
        self.world.lost_vms += 1
        self.world.note(f"FENCED {self.peer_name}")
        self.other.crash()
        self.world.after(self.world.delay_ns(500, 6_000), self.other.boot)

    def _start(self, role: VmRole, instance: str) -> None:
        if self.vm is not None and self.vm.alive:
            raise VmError("image in use")
        self.yanked, self.merged = False, role is VmRole.PRIMARY
        self.vm = ToyVm(self, role, instance, self.image)
        assert self.core is not None
        endpoints = Endpoints("192.0.2.9", 1, 2) if role is VmRole.SECONDARY else None
        self.core.vm_started(self.vm, endpoints)  # type: ignore[arg-type]

    def _with_vm(self, step: facts.Step) -> None:
        vm = self.vm
        if vm is None or not vm.alive:
            raise VmError("there is no VM here")
        match step:
            case facts.Synchronise():
                self._need_peer_vm()
                self.yanked = False
            case facts.EnterColo():
                Session(vm, self._need_peer_vm())
            case facts.LeavePair() | facts.ContinueAlone() | facts.Yank():
                self._leave(vm, runs=not isinstance(step, facts.Yank))
            case facts.TakeOver():
                assert vm.complete, "an SVM without a state was told to take over"
                self._leave(vm, runs=True)
            case facts.Committed():
                self.image, self.merged = vm.state, True

    def _need_peer_vm(self) -> ToyVm:
        peer = self.other.vm
        if peer is None or not peer.alive or not self.world.link_up():
            raise VmError("the peer's QEMU cannot be reached")
        return peer

    def _leave(self, vm: ToyVm, runs: bool) -> None:
        self.yanked = True
        if vm.session is not None:
            vm.session.end()
        if runs and vm.stopped:
            vm.runs()
