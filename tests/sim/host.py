# SPDX-License-Identifier: GPL-2.0-only
"""One host of the simulation: a real core, a toy data plane and VM, and what can happen to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from colo_ebpf.control.checkpoint.primary import Command, Do
from colo_ebpf.control.checkpoint.secondary import Note
from colo_ebpf.control.core.core import Core
from colo_ebpf.control.decision import actions, snapshot
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.peer.envelope import Seal
from colo_ebpf.control.peer.pause import Pause
from colo_ebpf.control.peer.state import Path, PeerView, Speech
from colo_ebpf.errors import (
    ArbiterError,
    CannotFenceError,
    ColoError,
    FenceError,
    StorageError,
    SwapUnknownError,
    VmError,
)
from colo_ebpf.model import (
    Endpoints,
    VmEvent,
    VmEventKind,
    VmRole,
)
from tests.sim.plane import ToyPlane
from tests.sim.vm import Session, ToyVm
from tests.sim.world import MS, TIMING, World

if TYPE_CHECKING:
    pass

SEAL = Seal(b"simulated key....")
LOOK_NS = 100 * MS  # between two looks at the arbiter


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

    def start_daemon(self, listens_after_ms: int = 0) -> None:
        """A new run: adopts the VM and the plane it finds. Events reach it before the peer does, if
        it is slow to listen."""
        if self.core is not None or not self.up:
            return
        self._run += 1
        self._beaten_ns = self.now_ns - TIMING.heartbeat_ns
        self._look_ns = 0
        self._speech = Speech(SEAL)
        boot = f"{self.name}{self._run}-{self.world.random.getrandbits(32):x}"
        peer = PeerView(
            vm="v",
            host=self.peer_name,
            boot=boot,
            seal=SEAL,
            started_ns=self.now_ns,
            silence_ns=TIMING.peer_timeout_ns,
            rests_ns=TIMING.absent_ns,
            listening=False,
        )
        who = snapshot.Who(
            "v",
            self.name,
            self.peer_name,
            "192.0.2.9",
            starts=self.name == "a",
            shares_disk=self.world.shares_disk,
            reserves=self.world.reserves,
        )
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
            log=lambda sentence, level: self.world.note(f"{self.name}: {sentence}"),
        )
        if self.vm is not None and self.vm.acts:
            vm, now_ns = self.vm, self.now_ns
            self.core.adopt(
                vm,  # type: ignore[arg-type]
                vm.past(),
                failed=vm.ever_sick,
                off=vm.off,
                now_ns=now_ns,
            )
        run = self._run
        if listens_after_ms:
            self.world.after(listens_after_ms * MS, lambda: self._listen(run))
        else:
            self._listen(run)

    def _listen(self, run: int) -> None:
        if run == self._run and self.core is not None:
            self.core.peer.listens(self.now_ns)
            self._beat(run)

    @property
    def _listens(self) -> bool:
        return self.core is not None and self.core.peer.listening

    def _beat(self, run: int) -> None:
        if run != self._run or self.core is None:
            return
        if not self.paused and self.now_ns >= self.core.idle_detector.next_beat_ns(self._beaten_ns):
            self._beaten_ns = self.now_ns
            self.plane.beat(self.now_ns)
            self._look_at_arbiter(self.core)
            self._decide(self.core)
            self.publish(1)
        self.world.after(self.world.delay_ns(10, 30), lambda: self._beat(run))

    def _look_at_arbiter(self, core: Core) -> None:
        if self.now_ns >= self._look_ns:
            self._look_ns = self.now_ns + LOOK_NS
            cut = self.name in self.world.arbiter_cut
            core.arbiter_looked_at("it does not answer" if cut else "", self.now_ns)

    def _decide(self, core: Core) -> None:
        """In every other history what a beat leaves out is done all the same: nothing may come of
        it."""
        calm = core.idle_detector.holds(self.now_ns)
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
            (
                core.decision,
                core.my_state(),
                core.attempt.running,
                core.record,
                core.requests.request,
            ),
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
        if not self._listens and self.up and not self.paused:
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
                error = "" if vm.acts else "monitor lost"
                self.core.command_done(command, stopped, error, self.now_ns)

        self.world.after(self.world.delay_ns(0.1, 3), lambda: self.deliver(answer))

    def start_step(self, step: actions.Step) -> None:
        """In its time."""
        self.effects += 1
        run = self._run
        slow = isinstance(
            step, actions.StartVm | actions.Synchronise | actions.EnterColo | actions.Fence
        )
        delay_ns = self.world.delay_ns(30, 200) if slow else self.world.delay_ns(0.3, 20)

        def finish() -> None:
            if run == self._run and self.core is not None:
                self._finish(step)

        self.world.after(delay_ns, lambda: self.deliver(finish))

    def _finish(self, step: actions.Step) -> None:
        assert self.core is not None
        record: Record | None = None
        error: ColoError | None = None
        try:
            record = self._carry_out(step)
        except ColoError as e:
            error = e
        self.core.step_done(step, record, error, self.now_ns)

    def _carry_out(self, step: actions.Step) -> Record | None:
        match step:
            case actions.Read():
                self._reach_arbiter()
                return self.world.record
            case actions.Swap(old, new):
                return self._swap(old, new)
            case actions.StartVm(role, instance):
                self._start(role, instance)
            case actions.EndVm(instance):
                if self.vm is not None and self.vm.instance == instance:
                    self.vm.die()
                    self.vm = None
            case actions.Fence(peer):
                assert peer == self.peer_name
                self._fence()
            case actions.Reserve():
                self._reserve()
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
            raise SwapUnknownError("the arbiter does not answer")
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

    def _reserve(self) -> None:
        """It works, or does nothing, or works and says that it failed."""
        chance = 0.0 if self.world.fence_works else self.world.random.random()
        if chance < 0.8:
            self.world.reserve(self)
        if chance >= 0.7:
            raise StorageError("the disk does not answer")

    def _power_off_other(self) -> None:
        assert not self.world.given, f"{self.peer_name} handed over and is fenced"
        self.world.lost_vms += 1
        self.world.note(f"FENCED {self.peer_name}")
        self.other.crash()
        self.world.after(self.world.delay_ns(500, 6_000), self.other.boot)

    def _start(self, role: VmRole, instance: str) -> None:
        if self.vm is not None and self.vm.alive:
            raise VmError("image in use")
        between = self.world.between if role is VmRole.PRIMARY else ""
        assert not between, f"started from a disk that {between} was writing to"
        if role is VmRole.PRIMARY:
            self.world.may_write(self)
        self.yanked, self.merged = False, role is VmRole.PRIMARY
        self.vm = ToyVm(self, role, instance, self.image)
        assert self.core is not None
        endpoints = Endpoints("192.0.2.9", 1, 2) if role is VmRole.SECONDARY else None
        self.core.vm_started(self.vm, endpoints)  # type: ignore[arg-type]

    def _with_vm(self, step: actions.Step) -> None:
        vm = self.vm
        if vm is None or not vm.acts:
            raise VmError("there is no VM here")
        match step:
            case actions.Synchronise():
                self._need_peer_vm()
                self.yanked = False
            case actions.EnterColo():
                Session(vm, self._need_peer_vm())
            case actions.LeavePair() | actions.ContinueAlone() | actions.Yank():
                alone = not isinstance(step, actions.Yank)
                if alone:
                    self.world.writes_alone(vm, takes_over=False)
                self._leave(vm, runs=alone)
            case actions.TakeOver():
                assert vm.complete, "an SVM without a state was told to take over"
                self.world.writes_alone(vm, takes_over=True)
                vm.replica = False
                self._leave(vm, runs=True)
            case actions.Committed():
                assert not vm.replica, "a replica has nothing to merge"
                self.merged, self.world.between = True, ""
                self.keep(vm.state)

    def keep(self, state: int) -> None:
        """The image boots into that."""
        self.image = state
        if self.world.shares_disk:
            self.other.image = state

    def _need_peer_vm(self) -> ToyVm:
        peer = self.other.vm
        if peer is None or not peer.acts or not self.world.link_up():
            raise VmError("the peer's QEMU cannot be reached")
        return peer

    def _leave(self, vm: ToyVm, runs: bool) -> None:
        self.yanked = True
        if vm.session is not None:
            vm.session.end()
        if runs and vm.stopped:
            vm.runs()
