# SPDX-License-Identifier: GPL-2.0-only
"""What one daemon knows, what follows from it, and what it says of itself.

Events change it: `core`. Two values are made of it: the snapshot that a decision looks at, and what
the next heartbeat tells the peer.
"""

from __future__ import annotations

from colo_ebpf.control.checkpoint.primary import Stage
from colo_ebpf.control.checkpoint.secondary import Note
from colo_ebpf.control.core.attempt import Attempt
from colo_ebpf.control.core.back_off import BackOff
from colo_ebpf.control.core.checkpoints import Checkpoints
from colo_ebpf.control.core.harm import Harm
from colo_ebpf.control.core.known_record import KnownRecord
from colo_ebpf.control.core.requests import Requests
from colo_ebpf.control.core.seqadj_handover import OffsetCopy
from colo_ebpf.control.core.vm_health import Fitness
from colo_ebpf.control.decision import actions
from colo_ebpf.control.decision import snapshot as values
from colo_ebpf.control.decision.actions import Decision, Side, State, TaskKind
from colo_ebpf.control.decision.fencing import FenceMemory
from colo_ebpf.control.decision.record import VNI_MAX, Kind, Record, weightier
from colo_ebpf.control.decision.snapshot import Snapshot
from colo_ebpf.control.interfaces import Effects, Plane, Vm
from colo_ebpf.control.peer.link_keys import LinkKeys
from colo_ebpf.control.peer.pause import Pause
from colo_ebpf.control.peer.state import LACKS_CHARACTERS, Path, PeerState, PeerView
from colo_ebpf.model import (
    Endpoints,
    Pairing,
    Settled,
    VmHealth,
    VmRole,
)

_UNPAIRED = (State.STANDBY, State.SOLO)


class Facts:
    """All facts of one daemon."""

    def __init__(
        self,
        who: values.Who,
        timing: values.Deadlines,
        plane: Plane,
        effects: Effects,
        peer: PeerView,
        *,
        now_ns: int,
        note: Note | None,
        pause: Pause | None,
        fence: values.FenceWhen,
    ) -> None:
        self.who, self.timing = who, timing
        self.plane, self.effects, self.peer = plane, effects, peer
        self.known = KnownRecord(now_ns)
        self.vm: Vm | None = None
        self.decision = Decision(State.UNKNOWN, "starting")
        self.attempt = Attempt()
        self.leaving = False
        self.checkpoints = Checkpoints(
            timing, plane, effects, note, now_ns, stands_first=who.shares_disk
        )
        self.offsets = OffsetCopy()
        self.requests = Requests(who.host)
        self.pause = pause or Pause()
        self.harm = Harm()
        self.link = LinkKeys(peer.boot)
        self.keys: list[str] = []  # names of the pair's keys that are heard
        self.back_off = BackOff()
        self.arbiter_error = ""  # at the last look
        self.last_words = ""  # of the last QEMU that ended here while it joined a pairing
        self._fence = FenceMemory(fence, who.host, who.peer)
        self._mode_since_ns = self.state_since_ns = now_ns
        self._endpoints: Endpoints | None = None
        self._clean, self._public = False, False
        self._left = False  # the VM here was a secondary's, and its QEMU has left COLO
        self._colo_exit_ns: int | None = None
        self._waits_ns: int | None = None
        self._yanked_ns: int | None = None
        self._pairing: Pairing | None = None
        self._plane_hears = False  # at the last snapshot

    @property
    def record(self) -> Record | None:
        """The newest one that was seen."""
        return self.known.record

    @property
    def fitness(self) -> Fitness:
        """Of the VM here."""
        return self.checkpoints.fitness

    def unfit(self) -> str:
        """Why the VM here may not be made the only one; "": it may."""
        return self.fitness.unfit(self.is_replica())

    def is_replica(self) -> bool:
        """The VM here is a secondary, made or being made."""
        return self.vm is not None and self._is_replica(self.vm)

    def ends(self, vm: Vm) -> bool:
        """We are ending it ourselves: that its monitor closes is no news."""
        step = self.attempt.running
        return isinstance(step, actions.EndVm) and step.instance == vm.instance

    def snapshot(self, now_ns: int) -> Snapshot:
        """Everything a decision may look at, now."""
        token = self.effects.token()
        self.peer.plane_heard_ns = self.plane.link_heard_ns()
        self._plane_hears = self.peer.hears_plane(self.timing.peer_timeout_ns, now_ns)
        return Snapshot(
            now_ns=now_ns,
            who=self.who,
            timing=self.timing,
            record=self.record,
            record_since_ns=self.known.since_ns,
            confirmed=self.known.confirmed,
            pending=weightier(self.known.pending, self._sent()),
            read_error=self.known.read_error,
            arbiter_error=self.arbiter_error,
            vm=self._vm_facts(),
            peer=values.PeerFacts(
                self.peer.state,
                self.peer.age_ns(Path.LINK, now_ns),
                self.peer.age_ns(Path.MANAGEMENT, now_ns),
                self.peer.away_since_ns(now_ns),
                bare_ns=now_ns - self.peer.frames_until_ns,
                unheard_ns=self.peer.unheard_ns(now_ns),
            ),
            checkpoints=self.checkpoints.facts(),
            mode=self.plane.mode(),
            mode_since_ns=self._mode_since_ns,
            plane_hears=self._plane_hears,
            public=self._public,
            task=self.attempt.task,
            done=frozenset(self.attempt.done),
            failure=self.attempt.failure,
            yanked_ns=self._yanked_ns,
            offsets=len(self.offsets.offered),
            rest_until_ns=self.back_off.until_ns,
            rest_why=self.back_off.why,
            last_read_ns=self.known.last_read_ns,
            fresh_vni=int(token[:6], 16) % VNI_MAX + 1,
            fresh_instance=f"{self.who.host}/{token}",
            request=self.requests.request,
            paused=self.pause.on,
            fence=self._fence.facts,
            lacks=self.harm.said,
        )

    def _sent(self) -> Record | None:
        """A swap that is under way may have been written already."""
        step = self.attempt.running
        return step.new if isinstance(step, actions.Swap) else None

    def _vm_facts(self) -> values.VmFacts | None:
        vm = self.vm
        if vm is None:
            return None
        return values.VmFacts(
            instance=vm.instance,
            role=vm.role,
            alive=vm.alive,
            settled=vm.settled() if self._is_replica(vm) else Settled.CURRENT,
            fit=not self.unfit(),
            closing=self.fitness.lost_ns is not None,
            clean=self._clean,
            endpoints=self._endpoints,
            colo_exit_ns=self._colo_exit_ns,
            off_at_s=self.checkpoints.guest.off_at_s,
            waits_ns=self._waits_ns,
        )

    def _is_replica(self, vm: Vm) -> bool:
        """Its state may be in the middle of a load; never so once it is, or was, the one that
        serves. While a claim is open that is the one whose host has the image."""
        r, instance = self.record, vm.instance
        if vm.role is not VmRole.SECONDARY or r is None or not r.names(instance):
            return vm.role is VmRole.SECONDARY
        serves = r.owner == instance and r.kind is not Kind.CLAIMED
        return not serves and r.image != self.who.host

    def _loads(self, vm: Vm) -> bool:
        """Checkpoints are loaded into it. It may have left COLO before the record is known."""
        return self._is_replica(vm) and not self._left

    def errors(self) -> tuple[str, ...]:
        """What failed last."""
        failed = self.attempt.failure.error if self.attempt.failure else ""
        return failed, self.known.read_error, self._fence.facts.error

    def my_state(self) -> PeerState:
        """What the next heartbeat carries (the transport numbers it)."""
        vm, points = self.vm, self.checkpoints
        at, part = self.offsets.part(self.peer.state) if self.attempt.pairs else (0, [])
        return PeerState(
            vm=self.who.vm,
            host=self.who.host,
            boot=self.peer.boot,
            echo=self.peer.echo,
            state=self.decision.state.value,
            generation=self.record.generation if self.record else 0,
            instance=vm.instance if vm else "",
            health=self._health(),
            fit=not self.fitness.complaint(self.is_replica()),
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
            keys=self.keys,
            link_offer=self.link.offer,
            seals_with=self.link.seals_with,
            sealed_with=self.link.sealed_with,
            tunnel=self.link.tunnel,
            lacks=self.harm.said[:LACKS_CHARACTERS],
            arbiter=self.arbiter_error[:LACKS_CHARACTERS],
            hears=self._plane_hears,
            compatibility=dict(self.who.compatibility) if self.decision.state in _UNPAIRED else {},
            gave_up=self.back_off.why,
            last_words=self.last_words,
            leaving=self.leaving,
            switchover=self.requests.asked_of_peer,
            answer=self.requests.answer,
            pause=self.pause,
        )

    def _offered_vni(self) -> int:
        if self.attempt.task is not None:
            return self.attempt.task.vni
        return self._pairing.vni if self._pairing is not None else 0

    def _health(self) -> VmHealth:
        vm = self.vm
        if vm is None:
            starts = isinstance(self.attempt.running, actions.StartVm)
            return VmHealth.STARTING if starts else VmHealth.NONE
        if not vm.alive:
            return VmHealth.NONE if self._past() else VmHealth.GONE
        if self._is_replica(vm) and vm.settled() is Settled.BROKEN:
            return VmHealth.BROKEN
        return VmHealth.INCOMING if self.decision.state is State.JOINING else VmHealth.RUNNING

    def _past(self) -> bool:
        """The VM here died before the attempt under way, which makes another one."""
        vm, task = self.vm, self.attempt.task
        if vm is None or vm.alive or task is None or task.kind is not TaskKind.JOIN:
            return False
        return task.instance != vm.instance

    @property
    def has_secondary(self) -> bool:
        """QEMU here is connected to another one, or is about to be."""
        return self.attempt.pairs or self.decision.side is Side.PRIMARY

    @property
    def checkpointing(self) -> bool:
        """This daemon can be asked for a checkpoint."""
        primary = self.checkpoints.primary.stage not in (Stage.OFF, Stage.BROKEN)
        return primary and self.decision.side is Side.PRIMARY
