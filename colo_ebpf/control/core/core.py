# SPDX-License-Identifier: GPL-2.0-only
"""One daemon without its clock, sockets and tasks: facts in, effects out.

The daemon and the simulation drive the same `Core`. Events change `facts` (`peer_datagram`,
`vm_event`, `plane_event`, `step_done`, ...); each ends in `cycle`, which takes a snapshot, lets
`decide` say what should be and makes it so: the data plane's mode at once, everything that awaits
an outsider as the one step under way. Checkpoints run beside it (`primary`, `secondary`). A
`beat` in which only time has passed does without (`idle_detector`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from logging import INFO, WARNING

from colo_ebpf.control.checkpoint.primary import Cause, Command
from colo_ebpf.control.checkpoint.secondary import Note
from colo_ebpf.control.core import severity
from colo_ebpf.control.core.facts import Facts
from colo_ebpf.control.core.healing import Healing
from colo_ebpf.control.core.idle_detector import IdleDetector, lasts
from colo_ebpf.control.decision import actions
from colo_ebpf.control.decision import snapshot as values
from colo_ebpf.control.decision.actions import Decision, State, Step, TaskKind
from colo_ebpf.control.decision.decide import decide
from colo_ebpf.control.decision.pairing import GAVE_UP
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.interfaces import Effects, Past, Plane, Vm, of_peer, waits
from colo_ebpf.control.peer.link_keys import LinkKeys
from colo_ebpf.control.peer.pause import Pause
from colo_ebpf.control.peer.state import Path, PeerState, PeerView
from colo_ebpf.errors import ArbiterError, ColoError, SwapUnknownError
from colo_ebpf.model import (
    Endpoints,
    Lack,
    Mode,
    PlaneEvent,
    PlaneEventKind,
    VmEvent,
    VmEventKind,
    VmRole,
)

_SETTLE_ROUNDS = 6
_URGENT_COPIES = 3
_LONGEST_SAID = 400  # characters, in a heartbeat


class Core(Facts):
    """The facts of one daemon, and what events make of them."""

    def __init__(
        self,
        who: values.Who,
        timing: values.Deadlines,
        plane: Plane,
        effects: Effects,
        peer: PeerView,
        *,
        now_ns: int,
        note: Note | None = None,
        pause: Pause | None = None,
        fence: values.FenceWhen = values.FenceWhen.OFF,
        log: Callable[[str, int], None] = lambda sentence, level: None,
        changed: Callable[[State, Decision], None] = lambda old, new: None,
    ) -> None:
        super().__init__(
            who, timing, plane, effects, peer, now_ns=now_ns, note=note, pause=pause, fence=fence
        )
        self.log, self._changed = log, changed
        self.history: deque[tuple[int, str]] = deque(maxlen=200)
        self.healing = Healing()
        self.idle_detector = IdleDetector(self.checkpoints, peer, plane, timing)
        self.published: PeerState | None = None  # at the end of the last cycle
        self._pairing_known = False
        self._wanted = ""

    # --- events ------------------------------------------------------------------------

    def adopt(self, vm: Vm, past: Past, *, failed: bool, off: bool, now_ns: int) -> None:
        """A QEMU that an earlier daemon left running, before the first cycle. `failed`: requests
        to its disks have, nobody can say since which checkpoint. `off`: its guest ended it."""
        self.vm, self._left = vm, past.left
        self.checkpoints.found(past, off, now_ns)
        if past.disk and (past.left or vm.role is VmRole.PRIMARY):
            self.fitness.failed(f"its disk failed ({past.disk})", None)
        self._waits_ns = now_ns if past.waits else None
        if past.spoilt and vm.role is VmRole.SECONDARY:
            self.fitness.failed("its disk failed", None)
        if failed and vm.role is VmRole.SECONDARY:
            self.fitness.failed("its disk failed at some time", vm.loads())

    def peer_datagram(self, datagram: bytes, path: Path, now_ns: int) -> bool:
        """One heartbeat came. False: it changed nothing, and nothing was done."""
        before = self.peer.state
        if not self.peer.receive(datagram, path, now_ns):
            if self.published is not None and self.published.echo != self.peer.echo:
                self.idle_detector.ends()  # a new run of its daemon: it is greeted in the next beat
            return False
        state = self.peer.state
        self._take_offsets()
        if state is not None:
            self.back_off.hear(state.boot, now_ns)
            if before is not None and state.differs_in_checkpoints_only(before):
                self._checkpoints_first(now_ns)
        self.cycle(now_ns)
        return True

    def _take_offsets(self) -> None:
        """As the secondary to be: what the primary hands over for this pairing.

        Not before the VM of this pairing is there: to start it is to forget what was known.
        """
        task, state, vm = self.attempt.task, self.peer.state, self.vm
        if vm is None or state is None or task is None or task.kind is not TaskKind.JOIN:
            return
        if vm.instance != task.instance:  # the one before is still being ended
            return
        entries = self.offsets.take(state) if state.vni == task.vni else []
        if entries:
            self.plane.learn_offsets(entries)

    def peer_refused(self, path: Path, now_ns: int) -> None:
        """The peer's host says that its daemon does not run."""
        self.peer.nobody_listens(path, now_ns)
        self.idle_detector.ends()

    def vm_event(self, vm: Vm, event: VmEvent, now_ns: int) -> None:
        """One event of a QEMU; those of one that is not ours any more are ignored."""
        if vm is not self.vm:
            return
        kind = event.kind
        if kind is VmEventKind.COLO_EXIT:
            self._left, self._colo_exit_ns = True, now_ns
        elif waits(event):
            self._stands_for_its_disk(vm, event, now_ns)
        elif kind is VmEventKind.RESUME:
            self._waits_ns = None
        elif kind is VmEventKind.BLOCK_ERROR or (
            kind is VmEventKind.DISK_BAD and not of_peer(event)
        ):
            self._disk_failed(vm, event)
        elif kind is VmEventKind.HUNG:
            self.fitness.hung = "its QEMU hangs"
        elif kind is VmEventKind.ANSWERS:
            self.fitness.hung = ""
        elif kind is VmEventKind.GONE:
            self.checkpoints.forget()  # it has no disk any more; `alive` says the rest
            if self.attempt.joins and not self.ends(vm):
                self._keep_words(vm.last_words())
        elif kind is VmEventKind.MONITOR_LOST and vm.alive and not self.ends(vm):
            self.fitness.lost_ns = now_ns
        replica = self._is_replica(vm)
        if told := self.checkpoints.guest.hear(event, loads=self._loads(vm)):
            self._tell(
                f"the replica: {told}" if replica else told, now_ns, severity.of_event(event)
            )
        self.checkpoints.vm_event(vm, event)
        if kind in (VmEventKind.GONE, VmEventKind.HUNG):
            self.effects.publish(_URGENT_COPIES)
        self.cycle(now_ns)

    def _disk_failed(self, vm: Vm, event: VmEvent) -> None:
        """A request of the guest, or one to the image here that the peer's image could answer."""
        reason = event.data.get("reason") or event.data.get("error") or "no reason given"
        why = f"its disk failed ({reason})"
        begun = max(vm.loads(), self.checkpoints.secondary.loads) if self._loads(vm) else None
        self.fitness.failed(why, begun)

    def _stands_for_its_disk(self, vm: Vm, event: VmEvent, now_ns: int) -> None:
        """The guest has seen no error. A replica is lost: a load leaves the request in its device,
        to be done on what was loaded."""
        self._waits_ns = now_ns
        if self._loads(vm):
            reason = event.data.get("reason") or "no reason given"
            self.fitness.failed(f"its disk failed ({reason})", None)

    def _keep_words(self, text: str) -> None:
        """Of a QEMU that ended: one line, the end of it."""
        self.last_words = " | ".join(text.splitlines())[-_LONGEST_SAID:]

    def plane_event(self, event: PlaneEvent, now_ns: int) -> None:
        """The data plane wakes us. That a frame is held changes no fact: it sets a time to look."""
        self.checkpoints.plane_event(event, now_ns)
        if event.kind is PlaneEventKind.HELD:
            self.idle_detector.sooner()
            return
        self._checkpoints_first(now_ns)
        self.cycle(now_ns)

    def plane_looked_at(self, found: Sequence[Lack], left: Sequence[Lack], now_ns: int) -> None:
        """What others have done to the plane's devices. Without a program in its way output may
        have left that the SVM never produced: a checkpoint makes the VMs equal again."""
        before, sentences = self.harm.said, self.harm.hear(found, left)
        for sentence in sentences:
            self._tell(sentence, now_ns, WARNING)
        if self.harm.hopeless:
            self.fitness.failed(self.harm.hopeless, None)
        if sentences:
            self.checkpoints.primary.ask(Cause.RESTORED, now_ns)
        if sentences or self.harm.said != before:
            self.cycle(now_ns)

    def arbiter_looked_at(self, error: str, now_ns: int) -> None:
        """Why it cannot be asked, or could not take a new record ("": it can)."""
        if error == self.arbiter_error:
            return
        said = f"the arbiter fails: {error}" if error else "the arbiter answers again"
        if bool(error) is not bool(self.arbiter_error):
            self._tell(said, now_ns, WARNING if error else INFO)
        self.arbiter_error = error
        self.cycle(now_ns)

    def stalled(self, why: str, now_ns: int) -> None:
        """Why the secondary's QEMU cannot be reached, though its host can ("": it can)."""
        if why != self.checkpoints.stalled:
            self.checkpoints.stalled = why
            self.cycle(now_ns)

    def command_done(self, command: Command, stopped: bool, error: str, now_ns: int) -> None:
        """A checkpoint's command was answered or failed."""
        self.checkpoints.command_done(command, stopped, error)
        self.cycle(now_ns)

    def vm_started(self, vm: Vm, endpoints: Endpoints | None) -> None:
        """A StartVm step has made a QEMU (called before its step_done)."""
        self.vm, self._endpoints, self._left = vm, endpoints, False
        self._clean, self._public = vm.role is VmRole.PRIMARY, False
        self.checkpoints.forget()
        self._colo_exit_ns = self._yanked_ns = self._waits_ns = None
        self._take_offsets()  # which may have been said by now, and will not be said anew

    def step_done(
        self, step: Step, record: Record | None, error: ColoError | None, now_ns: int
    ) -> None:
        """The step under way has ended; Read and Swap bring the newest record."""
        cancelled = self.attempt.ended()
        if isinstance(step, actions.Fence):
            self._fence.ended(error, now_ns)
        if error is not None:
            if not cancelled:
                self.attempt.failed(step, str(error), now_ns)
                if self.attempt.joins and isinstance(step, actions.StartVm):
                    self._keep_words(str(error))
            if isinstance(step, actions.Swap) and isinstance(error, SwapUnknownError):
                self.known.swap_unknown(step.new)
            if isinstance(error, ArbiterError):
                self.known.read_error = str(error)
        else:
            self._succeeded(step, record, now_ns)
        self.cycle(now_ns)

    def _succeeded(self, step: Step, record: Record | None, now_ns: int) -> None:
        self.attempt.succeeded(step)
        if record is not None:
            mine = isinstance(step, actions.Swap) and record.is_same(step.new)
            self._learn(record, mine, now_ns)
        else:
            self.attempt.mark_done(step)
        if isinstance(step, actions.EndVm):
            self.vm = self._endpoints = None
            self.checkpoints.forget()
        elif isinstance(step, actions.LeavePair | actions.ContinueAlone | actions.TakeOver):
            self._clean = True
        elif isinstance(step, actions.Yank):
            self._yanked_ns = now_ns
        elif isinstance(step, actions.GoPublic):
            self._public = True

    def _learn(self, record: Record, mine: bool, now_ns: int) -> None:
        """The newest record, and whether it is our own successful swap."""
        old = self.record
        if not self.known.learn(record, mine, now_ns):
            return
        if old is None or record.meaning() != old.meaning():
            self._fence.learned(old, record, self.decision.sentence)
            self.attempt.begin()
        if self.vm is not None and not self._is_replica(self.vm):
            self.fitness.serves()

    def take_pause(self, pause: Pause, now_ns: int) -> None:
        """An operator's newest word, said here or on the other host."""
        if pause.sentence() != self.pause.sentence():
            self._tell(pause.sentence(), now_ns, WARNING if pause.on else INFO)
        self.pause = pause
        self.effects.keep_pause(pause)

    def hears_keys(self, names: list[str]) -> None:
        """Of the pair's keys: the peer is told."""
        self.keys = names
        if self.published is not None:
            self._tell_news()

    def agreed_on(self, link: LinkKeys) -> None:
        """What is known of the link's keys now: the peer is told."""
        self.link = link
        if self.published is not None:
            self._tell_news()

    # --- the decision cycle ---------------------------------------------------------------

    def beat(self, now_ns: int) -> bool:
        """`cycle`, unless nothing would come of it. False: it was left out."""
        self.peer.runs(now_ns)
        if self.idle_detector.leaves_out(now_ns):
            return False
        if self.checkpoints.due(now_ns):
            self._checkpoints_first(now_ns)
            if self.idle_detector.leaves_out(now_ns):
                return False
        self.cycle(now_ns)
        return True

    def cycle(self, now_ns: int) -> None:
        """Decide and make it so, until nothing changes any more. Not before the peer can be heard:
        it would be missed."""
        if not self.peer.listening:
            return
        self.peer.runs(now_ns)
        self.requests.hear(self.peer.state, self.record, now_ns)
        if self.peer.state is not None and self.peer.state.pause.newer_than(self.pause):
            self.take_pause(self.peer.state.pause, now_ns)
        self.idle_detector.ends()
        self.fitness.outlives_monitor(now_ns, self.timing.peer_timeout_ns)
        for _ in range(_SETTLE_ROUNDS):
            before, s = self.decision, self.snapshot(now_ns)
            self._apply(decide(s), now_ns)
            self._checkpoints(now_ns)
            if self.decision == before:
                if self.attempt.running is None and lasts(s, before):
                    self.idle_detector.begins()
                break
        self._tell_news()

    def _checkpoints_first(self, now_ns: int) -> None:
        """What came concerns the checkpoints alone. While the last decision stands they need not
        wait for the next: a mismatch comes by here three times before QEMU is asked for one."""
        if self.idle_detector.stands(now_ns):
            self._checkpoints(now_ns)
            self._tell_news()

    def _apply(self, d: Decision, now_ns: int) -> None:
        old, self.decision = self.decision, d
        if d.state is not old.state:
            self.state_since_ns = now_ns
        if d.sentence != old.sentence:
            self._tell(d.sentence, now_ns, severity.of_decision(old, d, self.errors()))
        if d.answer is not None:
            self.requests.settle(d.answer)
            done = INFO if d.answer.done else WARNING
            self._tell(d.answer.sentence, now_ns, done)
        self._take_task(d, now_ns)
        if d.cancels and self.attempt.cancel():
            self.effects.cancel_step()
        if d.state is not State.UNKNOWN:
            self._set_plane(d, now_ns)
            self.checkpoints.take_side(d.side, self.vm, d.state is State.JOINING, now_ns)
        self.checkpoints.still = d.still
        if d.ask is not None:
            self.checkpoints.primary.ask(d.ask, now_ns)
        if d.step is not None and self.attempt.running is None:
            self._start(d.step)
        if d.state is not old.state:
            self._changed(old.state, d)
        if self.healing.look(d, self.attempt.done, self.who.peer, now_ns):
            self._tell(self.healing.last, now_ns)

    def _tell(self, sentence: str, now_ns: int, level: int = INFO) -> None:
        self.log(sentence, level)
        self.history.append((now_ns, sentence))

    def _take_task(self, d: Decision, now_ns: int) -> None:
        old, new = self.attempt.task, d.task
        self.attempt.task = new
        if d.state in (State.PRIMARY, State.SECONDARY):
            self.back_off.paired()
            self.last_words = ""
        if (old and (old.kind, old.vni)) == (new and (new.kind, new.vni)):
            return
        self.attempt.begin()
        self.offsets.begin(new.vni if new else 0)
        if new is not None and new.kind is TaskKind.PAIR:
            self._fence.pairs()
            self.checkpoints.peer_disk = ""
        if old is not None and old.kind is TaskKind.PAIR and d.state is not State.PRIMARY:
            self.back_off.failed(now_ns, d.sentence.removeprefix(GAVE_UP)[:_LONGEST_SAID])
        self.attempt.failure = None  # of an earlier attempt: it says nothing about this one

    def _set_plane(self, d: Decision, now_ns: int) -> None:
        if d.pairing != self._pairing or not self._pairing_known:
            self.plane.set_pairing(d.pairing)
            self._pairing, self._pairing_known = d.pairing, True
            self.peer.listen_anew(now_ns)
        if d.mode is not None and d.mode is not self.plane.mode():
            self.plane.set_mode(d.mode)
            self._mode_since_ns = now_ns
            if d.mode in (Mode.SOLO, Mode.PRIMARY):
                self.checkpoints.flush_wanted = True

    def _start(self, step: Step) -> None:
        if isinstance(step, actions.TakeOver) and self.vm is not None:
            self.checkpoints.settle(self.vm)
        if isinstance(step, actions.StartVm):
            self.vm = self._endpoints = None
        elif isinstance(step, actions.Synchronise):
            self._clean = False
        elif isinstance(step, actions.EnterColo):
            self._clean, self._colo_exit_ns = False, None
        self.attempt.start(step)
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
            self.log(f"asks for a checkpoint: {want}", INFO)
        self._wanted = want

    def _tell_news(self) -> None:
        state = self.my_state()
        if state != self.published:
            self.published = state
            self.effects.publish(1)
