# SPDX-License-Identifier: GPL-2.0-only
"""The way into a pair, from both sides. Part of `decide`; pure.

The one that serves alone (P, `solo`) and the one that stands by (S), in this order:

1. P offers a pairing under a new vni. S starts a fresh QEMU for it and says where it listens.
2. P copies the disk, enters COLO, takes a warm-up checkpoint: all the while P passes its output.
3. P withholds. A checkpoint that was triggered after that, armed and proven, is loaded.
4. P swaps to paired and stays withheld until the outcome is known. Only now may S ever bid.

So the record itself proves that S holds a whole state with everything P ever let out. A failure
before 4 returns P to passing; S's QEMU is ended when the offer is gone.
"""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.control.checkpoint.primary import Cause
from colo_ebpf.control.decision import record, rules
from colo_ebpf.control.decision.actions import (
    Decision,
    EnterColo,
    Read,
    Side,
    StartVm,
    State,
    Swap,
    Synchronise,
    Task,
    TaskKind,
)
from colo_ebpf.control.decision.record import Kind, Record, host_of
from colo_ebpf.control.decision.snapshot import Snapshot
from colo_ebpf.control.peer.state import PeerState
from colo_ebpf.model import Mode, VmHealth, VmRole

GAVE_UP = "gave up pairing: "

# --- P ------------------------------------------------------------------------------------


def unknown(s: Snapshot, r: Record, sent: Record) -> Decision:
    """The pair may be written down: whatever else happens, nothing leaves before we know.

    A swap of our own settles it: if it wins, the other one never can.
    """
    return Decision(
        State.PAIRING,
        "whether the pair is written down is not known: output withheld",
        mode=Mode.PAIRING,
        task=s.task,
        pairing=rules.paired_with(s, sent.vni),
        side=Side.PRIMARY,
        step=rules.rested(s, Swap(r, record.reassert(r))),
    )


def given_up(s: Snapshot, task: Task) -> str:
    """Why this attempt is over ("" while it is not)."""
    state, peer = s.peer.state, s.who.peer
    if state is None or not s.link_heard:
        return f"{peer} is not heard over the link"
    dead = state.vni == task.vni and state.health in (VmHealth.GONE, VmHealth.BROKEN)
    gone = s.peer_vm_gone(task.instance)
    withheld_ns = s.now_ns - s.mode_since_ns if s.mode is Mode.PAIRING else 0
    late = withheld_ns > s.timing.checkpoint_timeout_ns
    reasons = (
        _is_gone(s) if dead or (task.instance and gone) else "",
        "" if state.fit or state.heals else f"{peer} says that its VM is unfit",
        rules.failed(s, Synchronise),
        rules.failed(s, EnterColo),
        rules.failed(s, Swap) if s.pending is None else "",
        s.checkpoints.broken,
        "no checkpoint was proven in time" if late else "",
    )
    return next(filter(None, reasons), "")


def _is_gone(s: Snapshot) -> str:
    return f"the VM of {s.who.peer} is gone{_said(s)}"


def _said(s: Snapshot) -> str:
    said = s.peer.state.last_words if s.peer.state is not None else ""
    return f"; its last QEMU said: {said}" if said else ""


def offer(s: Snapshot, r: Record, task: Task) -> Decision:
    """Under the vni of this attempt, until the peer is ready; then everything up to the pair."""
    state = s.peer.state
    offered = Decision(
        State.PAIRING,
        f"offering a pairing to {s.who.peer}",
        mode=Mode.SOLO,
        task=task,
        pairing=rules.paired_with(s, task.vni),
    )
    if state is None or state.vni != task.vni or state.endpoints is None:
        return replace(offered, sentence=offered.sentence + _said(s))
    ready = replace(offered, task=replace(task, instance=state.instance))
    return _replicate(s, r, ready, state)


def _replicate(s: Snapshot, r: Record, ready: Decision, state: PeerState) -> Decision:
    to = state.endpoints
    assert to is not None  # `offer` looked
    if why := _frames_missing(s, state):
        return replace(ready, sentence=why)
    if Synchronise not in s.done:
        return replace(ready, sentence="copying the disk", step=Synchronise(to))
    if EnterColo not in s.done:
        return replace(ready, sentence="copying the memory", step=EnterColo(to))
    return _prepare(s, r, replace(ready, side=Side.PRIMARY), state)


def _frames_missing(s: Snapshot, state: PeerState) -> str:
    """Before anything is copied both planes have to hear each other."""
    here, peer = s.who.host, s.who.peer
    if s.plane_hears and state.hears:
        return ""
    one, other = (here, peer) if s.plane_hears else (peer, here)
    return (
        f"no full-sized frame of {one} arrives on {other} over the link: does a firewall drop them "
        "there, is the link's MTU too small?"
    )


def _prepare(s: Snapshot, r: Record, ready: Decision, state: PeerState) -> Decision:
    """In COLO, still passing: all that can be done before output has to wait."""
    if s.checkpoints.loaded is None:
        return replace(ready, sentence="warm-up checkpoint", ask=Cause.WARM_UP)
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
    loaded = s.checkpoints.loaded
    since = s.mode_since_ns if s.mode is Mode.PAIRING else s.now_ns
    if loaded is None or not loaded.armed or loaded.triggered_ns < since:
        text = "output withheld until the secondary has loaded a checkpoint"
        return replace(withheld, sentence=text, ask=Cause.PAIRING)
    return replace(
        withheld,
        sentence="the secondary is whole: writing the pair down",
        step=rules.rested(s, Swap(r, record.pair(r, state.instance, ready.task.vni)))
        if ready.task
        else None,
    )


# --- S ------------------------------------------------------------------------------------


def standby(s: Snapshot, r: Record) -> Decision:
    """The record does not name a VM of ours."""
    state = s.peer.state
    heard = state is not None and s.link_heard
    joined = s.task if s.task is not None and s.task.kind is TaskKind.JOIN else None
    by_peer = r.kind is Kind.ACTIVE and host_of(r.owner) == s.who.peer
    if by_peer and joined is not None and not heard:
        return _unheard(s, joined)
    if by_peer and heard and state is not None and state.vni and state.instance == r.owner:
        if joined is None or joined.vni != state.vni:
            joined = Task(TaskKind.JOIN, state.vni, s.fresh_instance)
        return _join(s, joined)
    text = f"standing by for {s.who.peer}; the record is {r.describe()}"
    if by_peer and (differs := rules.unlike(s)):
        text = f"standing by for {s.who.peer}, but no replica can be made here: {differs}"
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
        side=Side.SECONDARY,
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
    if s.own_vm(task.instance) is not None:
        return replace(joining, side=Side.SECONDARY)
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
