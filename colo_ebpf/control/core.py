# SPDX-License-Identifier: GPL-2.0-only
"""One daemon without its clock, sockets and tasks: facts in, effects out.

The daemon and the simulation drive the same `Core`. Events change facts (`peer_datagram`,
`vm_event`, `plane_event`, `step_done`, ...); each ends in `cycle`, which takes a snapshot, lets
`decide` say what should be and makes it so: the data plane's mode at once, everything that awaits
an outsider as the one step under way. Checkpoints run beside it (`epoch`, `epoch_secondary`). A
`beat` in which only time has passed does without (`calm`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from colo_ebpf.control import facts
from colo_ebpf.control.calm import Calm, lasts
from colo_ebpf.control.checkpoints import Checkpoints, of_peer
from colo_ebpf.control.decide import decide
from colo_ebpf.control.epoch import Command, Stage
from colo_ebpf.control.epoch_secondary import Note
from colo_ebpf.control.eventlog import Past
from colo_ebpf.control.facts import Decision, Snapshot, State, Step, TaskKind, Turns
from colo_ebpf.control.fencing import FenceMemory
from colo_ebpf.control.fitness import Fitness
from colo_ebpf.control.guest import Guest
from colo_ebpf.control.offsets import OffsetCopy
from colo_ebpf.control.pause import Pause
from colo_ebpf.control.peer import Path, PeerState, PeerView
from colo_ebpf.control.ports import Effects, Plane, SwapUnknown, Vm
from colo_ebpf.control.record import VNI_MAX, Kind, Record, weightier
from colo_ebpf.control.rests import Rests
from colo_ebpf.control.wishes import Wishes
from colo_ebpf.errors import ArbiterError, ColoError
from colo_ebpf.model import (
    Endpoints,
    Mode,
    Pairing,
    PlaneEvent,
    PlaneEventKind,
    Settled,
    VmEvent,
    VmEventKind,
    VmHealth,
    VmRole,
)

PAIR_STEPS = (facts.Synchronise, facts.EnterColo, facts.StartVm)
_SETTLE_ROUNDS = 6
_URGENT_COPIES = 3


class Core:
    """All state of one daemon."""

    def __init__(
        self,
        who: facts.Who,
        timing: facts.Timing,
        plane: Plane,
        effects: Effects,
        peer: PeerView,
        *,
        now_ns: int,
        note: Note | None = None,
        pause: Pause | None = None,
        fence: facts.FenceWhen = facts.FenceWhen.OFF,
        log: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.who, self.timing = who, timing
        self.plane, self.effects, self.peer = plane, effects, peer
        self.log = log
        self.record: Record | None = None
        self.vm: Vm | None = None
        self.decision = Decision(State.UNKNOWN, "starting")
        self.history: deque[tuple[int, str]] = deque(maxlen=200)
        self.running: Step | None = None
        self.leaving = False
        self.checkpoints = Checkpoints(timing, plane, effects, note, now_ns)
        self.offsets = OffsetCopy()
        self.wishes = Wishes(who.host)
        self.pause = pause or Pause()
        self._fence = FenceMemory(fence, who.host, who.peer)
        self._cancelling = False
        self._record_since_ns = self._mode_since_ns = now_ns
        self._confirmed = False
        self._pending: Record | None = None
        self._read_error = ""
        self._last_read_ns = now_ns
        self._endpoints: Endpoints | None = None
        self._clean, self._public = False, False
        self._colo_exit_ns: int | None = None
        self._yanked_ns: int | None = None
        self._task: facts.Task | None = None
        self._done: set[type] = set()
        self._attempt = self._step_attempt = 0  # a step counts as done for the attempt it began in
        self._failure: facts.Failure | None = None
        self.rests = Rests()
        self._pairing: Pairing | None = None
        self._pairing_known = False
        self.said: PeerState | None = None  # at the end of the last cycle
        self.calm = Calm(self.checkpoints, peer, plane, timing)
        self._wanted = ""

    # --- events ------------------------------------------------------------------------

    def adopt(self, vm: Vm, past: Past, *, failed: bool, off: bool, now_ns: int) -> None:
        """A QEMU that an earlier daemon left running, before the first cycle. `failed`: requests
        to its disks have, nobody can say since which checkpoint. `off`: its guest ended it."""
        self.vm = vm
        self.checkpoints.found(past, off, now_ns)
        if past.disk and (past.left or vm.role is VmRole.PRIMARY):
            self.fitness.failed(f"its disk failed ({past.disk})", None)
        if failed and vm.role is VmRole.SECONDARY:
            self.fitness.failed("its disk failed at some time", vm.loads())

    def peer_datagram(self, datagram: bytes, path: Path, now_ns: int) -> bool:
        """One heartbeat came. False: it changed nothing, and nothing was done."""
        before = self.peer.state
        if not self.peer.receive(datagram, path, now_ns):
            if self.said is not None and self.said.echo != self.peer.echo:
                self.calm.ends()  # a new run of its daemon: it is greeted in the next beat
            return False
        state = self.peer.state
        self._take_offsets()
        if state is not None:
            self.rests.hear(state.boot, now_ns)
            if before is not None and state.turns_from(before):
                self._turn_first(now_ns)
        self.cycle(now_ns)
        return True

    def _take_offsets(self) -> None:
        """As the secondary to be: what the primary hands over for this pairing."""
        task, state = self._task, self.peer.state
        if self.vm is None or state is None or task is None or task.kind is not TaskKind.JOIN:
            return
        entries = self.offsets.take(state) if state.vni == task.vni else []
        if entries:
            self.plane.learn_offsets(entries)

    def peer_refused(self, path: Path, now_ns: int) -> None:
        """The peer's host says that its daemon does not run."""
        self.peer.nobody_listens(path, now_ns)
        self.calm.ends()

    def vm_event(self, vm: Vm, event: VmEvent, now_ns: int) -> None:
        """One event of a QEMU; those of one that is not ours any more are ignored."""
        if vm is not self.vm:
            return
        kind = event.kind
        if kind is VmEventKind.COLO_EXIT:
            self._colo_exit_ns = now_ns
        elif kind is VmEventKind.BLOCK_ERROR or (
            kind is VmEventKind.DISK_BAD and not of_peer(event)
        ):
            self._disk_failed(vm, event)
        elif kind is VmEventKind.HUNG:
            self.fitness.hung = "its QEMU hangs"
        elif kind is VmEventKind.ANSWERS:
            self.fitness.hung = ""
        elif kind is VmEventKind.GONE:
            self._fresh()  # it has no disk any more; `alive` says the rest
        elif kind is VmEventKind.MONITOR_LOST and vm.alive and not self._ends(vm):
            self.fitness.lasting = "its QEMU does not answer"
        replica = self._is_replica(vm)
        loads = replica and self._colo_exit_ns is None
        if told := self.checkpoints.guest.hear(event, loads=loads):
            self._tell(f"the replica: {told}" if replica else told, now_ns)
        self.checkpoints.vm_event(vm, event)
        if kind in (VmEventKind.GONE, VmEventKind.HUNG):
            self.effects.publish(_URGENT_COPIES)
        self.cycle(now_ns)

    def _disk_failed(self, vm: Vm, event: VmEvent) -> None:
        """A request of the guest, or one to the image here that the peer's image could answer."""
        reason = event.data.get("reason") or event.data.get("error") or "no reason given"
        why = f"its disk failed ({reason})"
        replica = self._is_replica(vm)
        begun = max(vm.loads(), self.checkpoints.secondary.loads) if replica else None
        self.fitness.failed(why, begun)

    @property
    def fitness(self) -> Fitness:
        """Of the VM here."""
        return self.checkpoints.fitness

    def _fresh(self) -> None:
        self.checkpoints.fitness, self.checkpoints.guest = Fitness(), Guest()

    def unfit(self) -> str:
        """Why the VM here may not be made the only one; "": it may."""
        return self.fitness.unfit(self.is_replica())

    def is_replica(self) -> bool:
        """The VM here is a secondary, made or being made."""
        return self.vm is not None and self._is_replica(self.vm)

    def _ends(self, vm: Vm) -> bool:
        """We are ending it ourselves: that its monitor closes is no news."""
        return isinstance(self.running, facts.EndVm) and self.running.instance == vm.instance

    def plane_event(self, event: PlaneEvent, now_ns: int) -> None:
        """The data plane wakes us. That a frame is held changes no fact: it sets a time to look."""
        self.checkpoints.plane_event(event, now_ns)
        if event.kind is PlaneEventKind.HELD:
            self.calm.sooner()
            return
        self._turn_first(now_ns)
        self.cycle(now_ns)

    def command_done(self, command: Command, stopped: bool, error: str, now_ns: int) -> None:
        """A checkpoint's command was answered or failed."""
        self.checkpoints.command_done(command, stopped, error)
        self.cycle(now_ns)

    def vm_started(self, vm: Vm, endpoints: Endpoints | None) -> None:
        """A StartVm step has made a QEMU (called before its step_done)."""
        self.vm, self._endpoints = vm, endpoints
        self._clean, self._public = True, False
        self._fresh()
        self._colo_exit_ns = self._yanked_ns = None

    def step_done(
        self, step: Step, record: Record | None, error: ColoError | None, now_ns: int
    ) -> None:
        """The step under way has ended; Read and Swap bring the newest record."""
        self.running, cancelled, self._cancelling = None, self._cancelling, False
        if isinstance(step, facts.Fence):
            self._fence.ended(error, now_ns)
        if error is not None:
            if not cancelled:
                self._failure = facts.Failure(step, str(error), now_ns)
            if isinstance(step, facts.Swap) and isinstance(error, SwapUnknown):
                self._confirmed = False
                self._pending = weightier(self._pending, step.new)
            if isinstance(error, ArbiterError):
                self._read_error = str(error)
        else:
            self._succeeded(step, record, now_ns)
        self.cycle(now_ns)

    def _succeeded(self, step: Step, record: Record | None, now_ns: int) -> None:
        if self._failure is not None and type(self._failure.step) is type(step):
            self._failure = None
        if record is not None:
            mine = isinstance(step, facts.Swap) and record.is_same(step.new)
            self._learn(record, mine, now_ns)
        elif self._step_attempt == self._attempt:
            self._done.add(type(step))
        if isinstance(step, facts.EndVm):
            self.vm = self._endpoints = None
            self._fresh()
        elif isinstance(step, facts.LeavePair | facts.ContinueAlone | facts.TakeOver):
            self._clean = True
        elif isinstance(step, facts.Yank):
            self._yanked_ns = now_ns
        elif isinstance(step, facts.GoPublic):
            self._public = True

    def _learn(self, record: Record, mine: bool, now_ns: int) -> None:
        """The newest record, and whether it is our own successful swap."""
        self._last_read_ns, self._read_error = now_ns, ""
        old = self.record
        if self._pending is not None and record.generation >= self._pending.generation:
            mine = mine or record.is_same(self._pending)
            self._pending = None
        same = old is not None and (record.generation, record.nonce) == (old.generation, old.nonce)
        self._confirmed = mine or (same and self._confirmed)
        if same:
            return
        if old is None or record.meaning() != old.meaning():
            self._record_since_ns = now_ns
            self._fence.learned(old, record, self.decision.sentence)
            self._begin_attempt()
        self.record = record
        if self.vm is not None and not self._is_replica(self.vm):
            self.fitness.serves()

    def _begin_attempt(self) -> None:
        self._done.clear()
        self._attempt += 1

    def take_pause(self, pause: Pause, now_ns: int) -> None:
        """An operator's newest word, said here or on the other host."""
        if pause.on is not self.pause.on:
            self._tell("protection is paused" if pause.on else "protection is resumed", now_ns)
        self.pause = pause
        self.effects.keep_pause(pause)

    # --- the decision cycle ---------------------------------------------------------------

    def beat(self, now_ns: int) -> bool:
        """`cycle`, unless nothing would come of it. False: it was left out."""
        if self.calm.leaves_out(now_ns):
            return False
        if self.checkpoints.due(now_ns):
            self._turn_first(now_ns)
            if self.calm.leaves_out(now_ns):
                return False
        self.cycle(now_ns)
        return True

    def cycle(self, now_ns: int) -> None:
        """Decide and make it so, until nothing changes any more."""
        self.wishes.hear(self.peer.state, self.record, now_ns)
        if self.peer.state is not None and self.peer.state.pause.newer_than(self.pause):
            self.take_pause(self.peer.state.pause, now_ns)
        self.calm.ends()
        for _ in range(_SETTLE_ROUNDS):
            before, s = self.decision, self.snapshot(now_ns)
            self._apply(decide(s), now_ns)
            self._checkpoints(now_ns)
            if self.decision == before:
                if self.running is None and lasts(s, before):
                    self.calm.begins()
                break
        self._tell_news()

    def _turn_first(self, now_ns: int) -> None:
        """What came concerns the checkpoints alone. While the last decision stands they need not
        wait for the next: a mismatch comes by here three times before QEMU is asked for one."""
        if self.calm.stands(now_ns):
            self._checkpoints(now_ns)
            self._tell_news()

    def snapshot(self, now_ns: int) -> Snapshot:
        """Everything a decision may look at, now."""
        token = self.effects.token()
        heard_ns = self.peer.plane_heard_ns = self.plane.link_heard_ns()
        return Snapshot(
            now_ns=now_ns,
            who=self.who,
            timing=self.timing,
            record=self.record,
            record_since_ns=self._record_since_ns,
            confirmed=self._confirmed,
            pending=weightier(self._pending, self._sent()),
            read_error=self._read_error,
            vm=self._vm_facts(),
            peer=facts.PeerFacts(
                self.peer.state,
                self.peer.age_ns(Path.LINK, now_ns),
                self.peer.age_ns(Path.MANAGEMENT, now_ns),
                self.peer.away_since_ns(now_ns),
            ),
            turns=self.checkpoints.facts(),
            mode=self.plane.mode(),
            mode_since_ns=self._mode_since_ns,
            plane_hears=heard_ns > 0 and now_ns - heard_ns < self.timing.peer_timeout_ns,
            public=self._public,
            task=self._task,
            done=frozenset(self._done),
            failure=self._failure,
            yanked_ns=self._yanked_ns,
            offsets=len(self.offsets.offered),
            rest_until_ns=self.rests.until_ns,
            last_read_ns=self._last_read_ns,
            fresh_vni=int(token[:6], 16) % VNI_MAX + 1,
            fresh_instance=f"{self.who.host}/{token}",
            wish=self.wishes.wish,
            paused=self.pause.on,
            fence=self._fence.facts,
        )

    def _sent(self) -> Record | None:
        """A swap that is under way may have been written already."""
        return self.running.new if isinstance(self.running, facts.Swap) else None

    def _vm_facts(self) -> facts.VmFacts | None:
        vm = self.vm
        if vm is None:
            return None
        return facts.VmFacts(
            instance=vm.instance,
            role=vm.role,
            alive=vm.alive,
            settled=vm.settled() if self._is_replica(vm) else Settled.CURRENT,
            fit=not self.unfit(),
            clean=self._clean,
            endpoints=self._endpoints,
            colo_exit_ns=self._colo_exit_ns,
            off_at_s=self.checkpoints.guest.off_at_s,
        )

    def _is_replica(self, vm: Vm) -> bool:
        """Its state may be in the middle of a load; never so once it is, or was, the one that
        serves. While a claim is open that is the one whose host has the image."""
        r, instance = self.record, vm.instance
        if vm.role is not VmRole.SECONDARY or r is None or not r.names(instance):
            return vm.role is VmRole.SECONDARY
        serves = r.owner == instance and r.kind is not Kind.CLAIMED
        return not serves and r.image != self.who.host

    def _apply(self, d: Decision, now_ns: int) -> None:
        if d.sentence != self.decision.sentence:
            self._tell(d.sentence, now_ns)
        self.decision = d
        if d.answer is not None:
            self.wishes.settle(d.answer)
            self._tell(d.answer.sentence, now_ns)
        self._take_task(d, now_ns)
        if d.cancels and isinstance(self.running, PAIR_STEPS) and not self._cancelling:
            self._cancelling = True
            self.effects.cancel_step()
        if d.state is not State.UNKNOWN:
            self._set_plane(d, now_ns)
            self.checkpoints.take_side(d.turns, self.vm, d.state is State.JOINING, now_ns)
        self.checkpoints.still = d.still
        if d.ask is not None:
            self.checkpoints.primary.ask(d.ask, now_ns)
        if d.step is not None and self.running is None:
            self._start(d.step)

    def _tell(self, sentence: str, now_ns: int) -> None:
        self.log(sentence)
        self.history.append((now_ns, sentence))

    def _take_task(self, d: Decision, now_ns: int) -> None:
        old, new = self._task, d.task
        self._task = new
        if d.state is State.PRIMARY:
            self.rests.paired()
        if (old and (old.kind, old.vni)) == (new and (new.kind, new.vni)):
            return
        self._begin_attempt()
        self.offsets.begin(new.vni if new else 0)
        if new is not None and new.kind is TaskKind.PAIR:
            self._fence.pairs()
            self.checkpoints.peer_disk = ""
        if old is not None and old.kind is TaskKind.PAIR and d.state is not State.PRIMARY:
            self.rests.failed(now_ns)
        self._failure = None  # of an earlier attempt: it says nothing about this one

    def _set_plane(self, d: Decision, now_ns: int) -> None:
        if d.pairing != self._pairing or not self._pairing_known:
            self.plane.set_pairing(d.pairing)
            self._pairing, self._pairing_known = d.pairing, True
        if d.mode is not None and d.mode is not self.plane.mode():
            self.plane.set_mode(d.mode)
            self._mode_since_ns = now_ns
            if d.mode in (Mode.SOLO, Mode.PRIMARY):
                self.checkpoints.flush_wanted = True

    def _start(self, step: Step) -> None:
        if isinstance(step, facts.TakeOver) and self.vm is not None:
            self.checkpoints.settle(self.vm)
        if isinstance(step, facts.StartVm):
            self.vm = self._endpoints = None
        elif isinstance(step, facts.Synchronise):
            self._clean = False
        elif isinstance(step, facts.EnterColo):
            self._clean, self._colo_exit_ns = False, None
        self.running, self._step_attempt = step, self._attempt
        self.effects.start_step(step)

    def _checkpoints(self, now_ns: int) -> None:
        state = self.peer.state
        same = state is not None and self._pairing is not None and state.vni == self._pairing.vni
        heard_ns = min(self.peer.age_ns(path, now_ns) for path in Path)
        listening = (
            heard_ns <= self.timing.peer_timeout_ns and self.peer.away_since_ns(now_ns) is None
        )
        self.checkpoints.look(state if same else None, listening, now_ns)
        while self.checkpoints.waits.told:
            self._tell(self.checkpoints.waits.told.pop(0), now_ns)
        want = self.checkpoints.want
        if want and want != self._wanted:
            self.log(f"asks for a checkpoint: {want}")
        self._wanted = want

    # --- what we say --------------------------------------------------------------------

    def my_state(self) -> PeerState:
        """What the next heartbeat carries (the transport numbers it)."""
        vm, points = self.vm, self.checkpoints
        pairs = self._task is not None and self._task.kind is TaskKind.PAIR
        at, part = self.offsets.part(self.peer.state) if pairs else (0, [])
        return PeerState(
            vm=self.who.vm,
            host=self.who.host,
            boot=self.peer.boot,
            echo=self.peer.echo,
            state=self.decision.state.value,
            generation=self.record.generation if self.record else 0,
            instance=vm.instance if vm else "",
            health=self._health(),
            fit=not self.unfit(),
            vni=self._offered_vni(),
            endpoints=None if self._past() else self._endpoints,
            announced=points.announced,
            armed=points.secondary.armed,
            turned=max(self.plane.turn().epoch, points.secondary.highest),
            loaded=points.secondary.loaded,
            question=points.patience.question,
            worth_ns=points.patience.worth_ns,
            watches=points.watch.question,
            spent=points.watch.spent,
            idle=points.watch.idle,
            want=points.want,
            offsets_at=at,
            offsets=part,
            offsets_have=self.offsets.have,
            leaving=self.leaving,
            switchover=self.wishes.asked_of_peer,
            answer=self.wishes.answer,
            pause=self.pause,
        )

    def _offered_vni(self) -> int:
        if self._task is not None:
            return self._task.vni
        return self._pairing.vni if self._pairing is not None else 0

    def _health(self) -> VmHealth:
        vm = self.vm
        if vm is None:
            starts = isinstance(self.running, facts.StartVm)
            return VmHealth.STARTING if starts else VmHealth.NONE
        if not vm.alive:
            return VmHealth.NONE if self._past() else VmHealth.GONE
        if self._is_replica(vm) and vm.settled() is Settled.BROKEN:
            return VmHealth.BROKEN
        return VmHealth.INCOMING if self.decision.state is State.JOINING else VmHealth.RUNNING

    def _past(self) -> bool:
        """The VM here died before the attempt under way, which makes another one."""
        vm, task = self.vm, self._task
        if vm is None or vm.alive or task is None or task.kind is not TaskKind.JOIN:
            return False
        return task.instance != vm.instance

    def _tell_news(self) -> None:
        state = self.my_state()
        if state != self.said:
            self.said = state
            self.effects.publish(1)

    @property
    def checkpointing(self) -> bool:
        """This daemon can be asked for a checkpoint."""
        primary = self.checkpoints.primary.stage not in (Stage.OFF, Stage.BROKEN)
        return primary and self.decision.turns is Turns.PRIMARY
