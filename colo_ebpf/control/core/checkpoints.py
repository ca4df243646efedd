# SPDX-License-Identifier: GPL-2.0-only
"""Both sides of a checkpoint, tied to the data plane, the VM and the peer's heartbeats."""

from __future__ import annotations

from collections.abc import Sequence

from colo_ebpf.control.checkpoint.hold_timer import Patience, Told
from colo_ebpf.control.checkpoint.primary import (
    Action,
    Announce,
    Cause,
    Command,
    Flush,
    Limits,
    PrimaryCheckpoints,
    Stage,
    WriteTurn,
)
from colo_ebpf.control.checkpoint.secondary import Note, SecondaryCheckpoints
from colo_ebpf.control.checkpoint.watch import Watch
from colo_ebpf.control.core.guest_events import Guest
from colo_ebpf.control.core.held_answers import Waits
from colo_ebpf.control.core.vm_health import Fitness
from colo_ebpf.control.decision.actions import Side
from colo_ebpf.control.decision.snapshot import CheckpointFacts, Deadlines
from colo_ebpf.control.interfaces import Effects, Past, Plane, Vm, of_peer
from colo_ebpf.control.peer.state import PeerState
from colo_ebpf.model import Mode, OverlayUse, PlaneEvent, PlaneEventKind, VmEvent, VmEventKind

_CAUSES = {
    PlaneEventKind.MISMATCH: Cause.MISMATCH,
    PlaneEventKind.STORE_FULL: Cause.STORE_FULL,
    PlaneEventKind.EPOCH_AHEAD: Cause.EPOCH_AHEAD,
    PlaneEventKind.MISSED_INPUT: Cause.MISSED_INPUT,
    PlaneEventKind.SVM_RESET: Cause.SVM_RESET,
    PlaneEventKind.GAP: Cause.GAP,
}


_PEER_DISK = "a write to the secondary's disk failed"
_OVERLAYS_LEAST_NS, _OVERLAYS_MOST_NS = 50_000_000, 500_000_000
_FILLS_BYTES_NS = 4  # no disk takes 4 GB/s


def _rest_ns(overlays: Sequence[OverlayUse] | None) -> int:
    """Until they are looked at again: well before any can have filled by half of what is left."""
    room_bytes = min((one.room_bytes for one in overlays or ()), default=0)
    fills_ns = room_bytes // 2 // _FILLS_BYTES_NS
    return min(max(fills_ns, _OVERLAYS_LEAST_NS), _OVERLAYS_MOST_NS)


class Checkpoints:
    """The checkpoints of this daemon's VM, whichever side it is."""

    def __init__(
        self,
        timing: Deadlines,
        plane: Plane,
        effects: Effects,
        note: Note | None,
        now_ns: int,
        *,
        stands_first: bool = False,
    ) -> None:
        """`stands_first`: see `Limits`."""
        self._timing, self._plane, self._effects = timing, plane, effects
        limits = Limits(
            timing.arm_timeout_ns,
            timing.checkpoint_timeout_ns,
            timing.longest_epoch_ns,
            stands_first,
        )
        self.primary = PrimaryCheckpoints(limits)
        self.secondary = SecondaryCheckpoints(timing.arm_timeout_ns)
        self.fitness = Fitness()
        self.guest = Guest()
        self.peer_disk = ""  # why the disk of the secondary lacks a write, since it is being made
        self.refused_ns: int | None = None  # the last write that its disk did not take
        self.stalled = ""  # why the secondary's QEMU cannot be reached, though its host can
        self.announced = 0
        self.flush_wanted = False
        self.still = False  # begin none
        self._note = note
        self._side = Side.NONE
        self._vm: Vm | None = None
        self.waits = Waits(timing, plane, now_ns)
        self.watch = Watch()
        self._overlays_due_ns = self._looked_ns = now_ns
        self._overlays: tuple[OverlayUse, ...] | None = None  # as last looked at
        self._ahead = ""

    @property
    def want(self) -> str:
        """Secondary: why it wants a checkpoint."""
        if self._side is not Side.SECONDARY or self.fitness.lasting:
            return ""
        return self.secondary.want or self.fitness.want or self._ahead

    @property
    def patience(self) -> Patience:
        """Of the primary, with what it asks of the secondary."""
        return self.waits.patience

    @property
    def due_ns(self) -> int | None:
        """When to look, whatever else happens. Primary: at the frames that are held; secondary: at
        its VM, which the primary asks about. None: at nothing."""
        if self._side is Side.PRIMARY:
            return self.waits.due_ns
        return self.watch.due_ns if self._side is Side.SECONDARY else None

    def due(self, now_ns: int) -> bool:
        """It is time to look."""
        return self.due_ns is not None and now_ns >= self.due_ns

    def facts(self) -> CheckpointFacts:
        """For the decision."""
        p = self.primary
        idle = p.stage is Stage.IDLE and p.settled_epoch
        broken = p.broken or self.peer_disk or self.stalled
        return CheckpointFacts(broken, p.loaded, p.triggered_ns, idle, self.refused_ns)

    def forget(self) -> None:
        """The VM is gone, or another: what was known of its disks, its guest and its secondary."""
        self.fitness, self.guest, self.peer_disk = Fitness(), Guest(), ""
        self.refused_ns = None

    def found(self, past: Past, off: bool, now_ns: int) -> None:
        """Of a VM that is adopted."""
        self.guest.found(past, off, now_ns)
        if past.peer_disk:
            self.peer_disk = _PEER_DISK

    def take_side(self, side: Side, vm: Vm | None, fresh: bool, now_ns: int) -> None:
        """Begin or end; `fresh`: the secondary's VM was made for this pairing."""
        if side is self._side and (vm is self._vm or side is Side.NONE):
            return
        self.primary.end()
        self.secondary.end()
        self.watch.end()
        self._side, self._vm, self.announced = side, vm, 0
        self._overlays = None
        if vm is None:
            self._side = Side.NONE
        elif side is Side.PRIMARY:
            restarted = self._plane.mode() is Mode.PRIMARY
            self._do(self.primary.begin(self._plane.turn(), now_ns, restarted=restarted))
            self.waits.begin(now_ns)
        elif side is Side.SECONDARY:
            note = None if fresh else self._note
            cell, loads, settled = self._plane.turn(), vm.loads(), vm.settled()
            self._write(self.secondary.begin(cell, note, loads, settled, now_ns))

    def settle(self, vm: Vm) -> None:
        """Before a takeover: the cell names the SVM's state, whose offsets become lasting."""
        self._write(self.secondary.settle(vm.settled(), vm.loads()))
        self._plane.keep_offsets(self.secondary.epoch)

    def vm_event(self, vm: Vm, event: VmEvent) -> None:
        """One event of our VM, in order."""
        local = event.kind is VmEventKind.DISK_BAD and not of_peer(event)
        if event.kind is VmEventKind.DISK_BAD and not local:
            self.peer_disk, self.refused_ns = _PEER_DISK, event.at_ns
        if self._side is Side.PRIMARY and not local:
            self._do(self.primary.vm_event(event, vm.peer_loads()))
            if event.kind is VmEventKind.STOP and self.primary.stage is not Stage.IDLE:
                self.waits.stopped()
            if event.kind is VmEventKind.RESET:
                self._do(self.primary.ask(Cause.GUEST_RESET, event.at_ns))
        elif self._side is Side.SECONDARY:
            self._write(self.secondary.vm_event(event, vm.settled()))

    def plane_event(self, event: PlaneEvent, now_ns: int) -> None:
        """The data plane saw a cause for a checkpoint, or held the first frame."""
        if event.kind is PlaneEventKind.HELD:
            self.waits.first(now_ns)
        elif not self.waits.covers(_CAUSES[event.kind], now_ns):
            self._do(self.primary.ask(_CAUSES[event.kind], event.at_ns, event.epoch))

    def command_done(self, command: Command, stopped: bool, error: str) -> None:
        """A command was answered or failed."""
        if error:
            self._do(self.primary.failed(command, error))
        else:
            told = self._vm.peer_loads() if self._vm is not None else 0
            self._do(self.primary.replied(command, stopped, told))

    def look(self, peer: PeerState | None, listening: bool, now_ns: int) -> None:
        """A turn of the decision cycle; `peer` only if it speaks of the same pairing."""
        self._looked_ns = now_ns
        if self._side is Side.PRIMARY:
            self._look_primary(peer, listening, now_ns)
        elif self._side is Side.SECONDARY and self._vm is not None:
            if peer is not None and peer.announced:
                self.secondary.announced(peer.announced)
            self._look_after_svm(peer, self._vm, now_ns)
            if self.secondary.look(now_ns):
                self._write(self.secondary.counted(self._vm.loads()))
            self._look_overlays(self._vm, now_ns)
            self._ahead = self.guest.ahead(now_ns, self._timing.arm_timeout_ns)
        self._flush()

    def quiet_until_ns(self, now_ns: int) -> int:
        """Until then `look` would do nothing, while the peer is heard and says what it has said.
        0: it has something to do."""
        if self.flush_wanted or self._vm is None:
            return 0
        if self._side is Side.PRIMARY:
            quiet_ns = self.primary.quiet_until_ns() if self._rested(self._looked_ns) else 0
        else:
            quiet_ns = self._secondary_quiet_until_ns(self._vm, now_ns)
        return quiet_ns if self.due_ns is None else min(quiet_ns, self.due_ns)

    def _secondary_quiet_until_ns(self, vm: Vm, now_ns: int) -> int:
        replica_well = self.guest.off_at_s is None and not self.fitness.passing
        if not replica_well or not self._overlays_as_before(vm, now_ns):
            return 0
        return min(self._overlays_due_ns, self.secondary.quiet_until_ns())

    def _overlays_as_before(self, vm: Vm, now_ns: int) -> bool:
        if now_ns < self._overlays_due_ns:
            return True
        if vm.overlay_use() != self._overlays:
            return False
        self._overlays_due_ns = now_ns + _rest_ns(self._overlays)
        return True

    def _look_overlays(self, vm: Vm, now_ns: int) -> None:
        """The primary cannot see them. Under a load they are about to be emptied."""
        early = now_ns < self._overlays_due_ns and not self.fitness.passing
        if early or self.secondary.stopped:
            return
        self._overlays = vm.overlay_use()
        self._overlays_due_ns = now_ns + _rest_ns(self._overlays)
        self.fitness.overlays(self._overlays, self.secondary.loads)
        self.fitness.loaded(vm.loads())

    def _look_primary(self, peer: PeerState | None, listening: bool, now_ns: int) -> None:
        self._look_held(peer if listening else None, now_ns)
        if peer is not None and listening:
            self._hear_wants(peer, now_ns)
        if self.still and self.primary.stage is Stage.IDLE:
            return
        self._do(
            self.primary.look(
                now_ns,
                taken=max(peer.turned, peer.armed) if peer else 0,
                armed=peer.armed if peer else 0,
                listening=listening and peer is not None,
            )
        )

    def _hear_wants(self, peer: PeerState, now_ns: int) -> None:
        """The secondary is not in our epoch, and had time to say that it is."""
        if self.primary.stage is not Stage.IDLE or self.primary.loaded is None:
            return
        if self._rested(now_ns) and (peer.want or peer.loaded != self.primary.epoch):
            self._do(self.primary.ask(Cause.PEER, now_ns))

    def _rested(self, now_ns: int) -> bool:
        loaded = self.primary.loaded
        return loaded is None or now_ns - loaded.resumed_ns > self._timing.arm_timeout_ns

    def _look_held(self, peer: PeerState | None, now_ns: int) -> None:
        """Answers that have waited long enough cost a checkpoint."""
        if self.primary.stage is not Stage.IDLE:
            return
        told = Told(peer.watches, peer.spent, peer.idle) if peer else None
        due = self.waits.look(told, now_ns)
        if due is not None:
            self._do(self.primary.ask(due, now_ns))

    def _look_after_svm(self, peer: PeerState | None, vm: Vm, now_ns: int) -> None:
        """The primary asks whether it is still working on an answer."""
        watch = self.watch
        if peer is not None and watch.news(peer.question):
            watch.begin(peer.question, peer.worth_ns, vm.work(), now_ns)
        elif self.due(now_ns):
            watch.look(vm.work(), now_ns)

    def _flush(self) -> None:
        """Once a checkpoint is loaded, or solo, until nothing is left."""
        mode = self._plane.mode()
        may = mode is Mode.SOLO or (mode is Mode.PRIMARY and self.primary.settled_epoch)
        if not self.flush_wanted or not may:
            return
        self.flush_wanted = self._plane.flush().left > 0

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, WriteTurn):
                self._plane.set_turn(action.epoch, action.phase)
            elif isinstance(action, Announce):
                self.announced = action.epoch  # which the cycle, or who hastens it, tells
            elif isinstance(action, Flush):
                self._loaded()
            elif self._vm is not None:
                self._effects.command(self._vm, action)

    def _loaded(self) -> None:
        """The last checkpoint is: what waited for it leaves."""
        one = self.primary.loaded
        assert one is not None, "a flush follows a load"
        self.waits.loaded(one)
        self.primary.longest_epoch_ns = self.waits.bound.epoch_ns
        self.flush_wanted = True
        self._flush()
        self.waits.flushed(one.resumed_ns)

    def _write(self, cells: Sequence[WriteTurn]) -> None:
        for cell in cells:
            self._plane.set_turn(cell.epoch, cell.phase)
        if cells:
            self._note = self.secondary.note()
            self._effects.keep_note(self._note)
