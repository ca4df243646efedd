# SPDX-License-Identifier: GPL-2.0-only
"""The way into a pair, from both sides. Part of `decide`; pure.

The one that is solo (P) and the one that stands by (S), in this order:

1. P offers a pairing under a new vni. S starts a fresh QEMU for it and says where it listens.
2. P copies the disk, enters COLO, takes a warm-up checkpoint: all the while P passes its output.
3. P withholds. A checkpoint that was triggered after that, armed and proven, is loaded.
4. P swaps to paired and stays withheld until the outcome is known. Only now may S ever bid.

So the record itself proves that S holds a whole state with everything P ever let out. A failure
before 4 returns P to passing; S's QEMU is ended when the offer is gone.
"""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.control import fencing, poweroff, record, rules
from colo_ebpf.control.epoch import Reason
from colo_ebpf.control.facts import (
    Committed,
    Decision,
    EnterColo,
    GoPublic,
    LeavePair,
    Read,
    Snapshot,
    StartVm,
    State,
    Swap,
    Synchronise,
    Task,
    TaskKind,
    Turns,
    VmFacts,
)
from colo_ebpf.control.peer import PeerState
from colo_ebpf.control.record import Disk, Kind, Record, host_of
from colo_ebpf.model import Mode, VmHealth, VmRole

# --- P: solo ------------------------------------------------------------------------------


def solo(s: Snapshot, r: Record) -> Decision:
    """The record says we are active."""
    vm = rules.own_vm(s, r.owner)
    if vm is None:
        return _solo_without_vm(s, r)
    if s.pending is not None and s.pending.kind is Kind.PAIRED:
        return _unknown(s, r, s.pending)
    if vm.off_at_s is not None:
        return _powered_off(s, r)
    if s.task is None or s.task.kind is not TaskKind.PAIR:
        return _alone(s, r, vm)
    why = _given_up(s, s.task)
    if why:
        return replace(_alone(s, r, vm), sentence=f"gave up pairing: {why}", cancels=True)
    return _offer(s, r, s.task)


def _solo_without_vm(s: Snapshot, r: Record) -> Decision:
    if r.disk is Disk.WHOLE:
        return Decision(
            State.STARTING,
            "the VM is gone and this image is whole: starting it again",
            mode=Mode.WITHHOLD,
            step=rules.rested(s, Swap(r, record.start(r, s.fresh_instance))),
        )
    return Decision(
        State.STUCK,
        "the VM is gone while part of its disk was in its memory only: this image is never started "
        "by itself; choose the other host's image",
        mode=Mode.WITHHOLD,
    )


def _powered_off(s: Snapshot, r: Record) -> Decision:
    here = Decision(State.SOLO, "")
    if r.disk is Disk.WHOLE:
        return poweroff.written_down(s, r, here)
    return _commit(s, r, poweroff.merging(here))


def _unknown(s: Snapshot, r: Record, sent: Record) -> Decision:
    """The pair may be written down: whatever else happens, nothing leaves before we know.

    A swap of our own settles it: if it wins, the other one never can.
    """
    return Decision(
        State.PAIRING,
        "whether the pair is written down is not known: output withheld",
        mode=Mode.PAIRING,
        task=s.task,
        pairing=rules.paired_with(s, sent.vni),
        turns=Turns.PRIMARY,
        step=rules.rested(s, Swap(r, record.reassert(r))),
    )


def _alone(s: Snapshot, r: Record, vm: VmFacts) -> Decision:
    """Pass everything, put the house in order, then offer a pairing."""
    if s.mode is not Mode.SOLO and not s.confirmed:
        return Decision(
            State.SOLO,
            "proving that this VM is still the active one",
            step=rules.rested(s, Swap(r, record.reassert(r))),
        )
    alone = Decision(State.SOLO, "alone, unprotected", mode=Mode.SOLO)
    if not s.public:
        return replace(alone, step=rules.rested(s, GoPublic()))
    return fencing.after_solo(s, alone) or _in_order(s, r, vm, alone)


def _in_order(s: Snapshot, r: Record, vm: VmFacts, alone: Decision) -> Decision:
    """What is left of the last pair is cleared away before the next one is offered."""
    if not vm.clean:
        return replace(alone, step=rules.rested(s, LeavePair()))
    if r.disk is Disk.OVERLAID:
        text = "alone, unprotected: merging the overlays into the image"
        return _commit(s, r, replace(alone, sentence=text))
    why = _no_partner(s)
    if why:
        return replace(alone, sentence=f"alone, unprotected: {why}{fencing.not_fenced(s)}")
    return replace(alone, task=Task(TaskKind.PAIR, s.fresh_vni))


def _commit(s: Snapshot, r: Record, alone: Decision) -> Decision:
    if Committed in s.done:
        return replace(alone, step=rules.rested(s, Swap(r, record.commit(r))))
    return replace(alone, step=rules.rested(s, Committed()))


def _no_partner(s: Snapshot) -> str:
    """Why no pairing can be offered now ("" if it can)."""
    state = s.peer.state
    if state is None or s.peer.age_ns > s.timing.peer_timeout_ns:
        return f"{s.who.peer} is not heard"
    if s.peer.link_age_ns > s.timing.peer_timeout_ns:
        return "the link is cut"
    if state.leaving or state.state not in (State.STANDBY.value, State.JOINING.value):
        return f"{s.who.peer} is not standing by"
    if s.paused:
        return "paused by the operator"
    if s.now_ns < s.rest_until_ns:
        return "resting after a pairing that failed"
    return ""


# --- P: pairing ---------------------------------------------------------------------------


def _given_up(s: Snapshot, task: Task) -> str:
    """Why this attempt is over ("" while it is not)."""
    state, peer = s.peer.state, s.who.peer
    if state is None or s.peer.link_age_ns > s.timing.peer_timeout_ns:
        return f"{peer} is not heard over the link"
    dead = state.vni == task.vni and state.health in (VmHealth.GONE, VmHealth.BROKEN)
    gone = state.instance != task.instance or state.health in rules.NO_VM
    withheld_ns = s.now_ns - s.mode_since_ns if s.mode is Mode.PAIRING else 0
    late = withheld_ns > s.timing.checkpoint_timeout_ns
    reasons = (
        f"the VM of {peer} is gone" if dead or (task.instance and gone) else "",
        "" if state.fit or state.heals else f"{peer} says that its VM is unfit",
        rules.failed(s, Synchronise),
        rules.failed(s, EnterColo),
        rules.failed(s, Swap) if s.pending is None else "",
        s.turns.broken,
        "no checkpoint was proven in time" if late else "",
    )
    return next(filter(None, reasons), "")


def _offer(s: Snapshot, r: Record, task: Task) -> Decision:
    state = s.peer.state
    offered = Decision(
        State.PAIRING,
        f"offering a pairing to {s.who.peer}",
        mode=Mode.SOLO,
        task=task,
        pairing=rules.paired_with(s, task.vni),
    )
    if state is None or state.vni != task.vni or state.endpoints is None:
        return offered
    ready = replace(offered, task=replace(task, instance=state.instance))
    return _replicate(s, r, ready, state)


def _replicate(s: Snapshot, r: Record, ready: Decision, state: PeerState) -> Decision:
    to = state.endpoints
    assert to is not None  # _offer looked
    if Synchronise not in s.done:
        return replace(ready, sentence="copying the disk", step=Synchronise(to))
    if not s.plane_hears:
        text = f"no full-sized frame of {s.who.peer} comes over the link: is its MTU large enough?"
        return replace(ready, sentence=text)
    if EnterColo not in s.done:
        return replace(ready, sentence="copying the memory", step=EnterColo(to))
    return _prepare(s, r, replace(ready, turns=Turns.PRIMARY), state)


def _prepare(s: Snapshot, r: Record, ready: Decision, state: PeerState) -> Decision:
    """In COLO, still passing: all that can be done before output has to wait."""
    if s.turns.loaded is None:
        return replace(ready, sentence="warm-up checkpoint", ask=Reason.WARM_UP)
    if state.offsets_have < s.offsets:
        text = f"handing over sequence offsets: {state.offsets_have} of {s.offsets}"
        return replace(ready, sentence=text)
    if not s.confirmed and s.pending is None:
        text = "proving that this VM is still the active one"
        return replace(ready, sentence=text, step=rules.rested(s, Swap(r, record.reassert(r))))
    return _commit_pair(s, r, ready, state)


def _commit_pair(s: Snapshot, r: Record, ready: Decision, state: PeerState) -> Decision:
    """Withhold; load a checkpoint triggered after that; only then let the record say so."""
    withheld = replace(ready, mode=Mode.PAIRING)
    loaded = s.turns.loaded
    since = s.mode_since_ns if s.mode is Mode.PAIRING else s.now_ns
    if loaded is None or not loaded.armed or loaded.triggered_ns < since:
        text = "output withheld until the secondary has loaded a checkpoint"
        return replace(withheld, sentence=text, ask=Reason.PAIRING)
    return replace(
        withheld,
        sentence="the secondary is whole: writing the pair down",
        step=rules.rested(s, Swap(r, record.pair(r, state.instance, ready.task.vni)))
        if ready.task
        else None,
    )


# --- S: standing by -----------------------------------------------------------------------


def standby(s: Snapshot, r: Record) -> Decision:
    """The record does not name a VM of ours."""
    state = s.peer.state
    heard = state is not None and s.peer.link_age_ns <= s.timing.peer_timeout_ns
    joined = s.task if s.task is not None and s.task.kind is TaskKind.JOIN else None
    by_peer = r.kind is Kind.ACTIVE and host_of(r.owner) == s.who.peer
    if by_peer and joined is not None and not heard:
        return _unheard(s, joined)
    if by_peer and heard and state is not None and state.vni and state.instance == r.owner:
        if joined is None or joined.vni != state.vni:
            joined = Task(TaskKind.JOIN, state.vni, s.fresh_instance)
        return _join(s, joined)
    text = f"standing by for {s.who.peer}; the record is {r.describe()}"
    return Decision(State.STANDBY, text, mode=Mode.WITHHOLD)


def _unheard(s: Snapshot, joined: Task) -> Decision:
    """P fell silent: the swap it may have sent decides whether this VM counts."""
    due = s.now_ns - s.last_read_ns >= s.timing.retry_ns
    return Decision(
        State.JOINING,
        f"{s.who.peer} fell silent while pairing: the record does not name the VM here",
        mode=Mode.SECONDARY,
        task=joined,
        pairing=rules.paired_with(s, joined.vni),
        turns=Turns.SECONDARY,
        step=rules.rested(s, Read()) if due else None,
    )


def _join(s: Snapshot, task: Task) -> Decision:
    joining = Decision(
        State.JOINING,
        f"joining the pairing that {s.who.peer} offers",
        mode=Mode.SECONDARY,
        task=task,
        pairing=rules.paired_with(s, task.vni),
    )
    if rules.own_vm(s, task.instance) is not None:
        return replace(joining, turns=Turns.SECONDARY)
    if StartVm in s.done:
        return replace(joining, sentence="the VM made for this pairing is gone")
    if s.vm is not None and s.vm.alive:
        return joining  # of an earlier attempt: ended first
    error = rules.failed(s, StartVm)
    return replace(
        joining,
        sentence=f"starting QEMU failed: {error}" if error else joining.sentence,
        step=rules.rested(s, StartVm(VmRole.SECONDARY, task.instance), 10 * s.timing.retry_ns),
    )
