# SPDX-License-Identifier: GPL-2.0-only
"""What the host does whose VM serves alone. Part of `decide`; pure.

It passes everything, clears away what is left of the last pair, then offers a new one: `pairing`.
"""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.control.decision import fencing, pairing, poweroff, record, rules
from colo_ebpf.control.decision.actions import (
    Committed,
    ContinueAlone,
    Decision,
    GoPublic,
    LeavePair,
    Side,
    State,
    Step,
    Swap,
    TakeOver,
    Task,
    TaskKind,
)
from colo_ebpf.control.decision.record import Disk, Kind, Record
from colo_ebpf.control.decision.snapshot import Snapshot, VmFacts
from colo_ebpf.model import Mode

# QEMU says QUORUM_REPORT_BAD once a second at most (monitor_qapi_event_conf): what it says last may
# come that late, and names the secondary's node, which is the next secondary's, too.
_SAID_LATE_NS = 1_100_000_000


def active(s: Snapshot, r: Record) -> Decision:
    """The record says we are active."""
    vm = s.own_vm(r.owner)
    if vm is None:
        return _without_vm(s, r)
    if s.pending is not None and s.pending.kind is Kind.PAIRED:
        return pairing.unknown(s, r, s.pending)
    if s.who.shares_disk and s.task is None and not vm.clean and s.mode is not Mode.SOLO:
        return _acts(s, r)
    return _powered_off(s, r) if vm.off_at_s is not None else _serving(s, r, vm)


def _serving(s: Snapshot, r: Record, vm: VmFacts) -> Decision:
    if s.task is None or s.task.kind is not TaskKind.PAIR:
        return _alone(s, r, vm)
    why = pairing.given_up(s, s.task)
    if why:
        return replace(_alone(s, r, vm), sentence=f"{pairing.GAVE_UP}{why}", cancels=True)
    return pairing.offer(s, r, s.task)


def _acts(s: Snapshot, r: Record) -> Decision:
    """Won, with a shared disk: what has to be done before anything leaves. See `decide`."""
    if r.disk is Disk.OVERLAID:
        return _act(s, TakeOver(), "taking over", Mode.WITHHOLD, Side.SECONDARY)
    return _act(s, ContinueAlone(), "leaving the pair to go on alone", Mode.PRIMARY, Side.NONE)


def _act(s: Snapshot, step: Step, what: str, mode: Mode, side: Side) -> Decision:
    error = rules.failed(s, type(step))
    text = f"{what}: trying again after {error}" if error else what
    return Decision(State.CLAIMED, text, mode=mode, side=side, step=rules.rested(s, step))


def _without_vm(s: Snapshot, r: Record) -> Decision:
    if r.disk is Disk.WHOLE:
        return Decision(
            State.STARTING,
            "the VM is gone and this image is whole: starting it again",
            mode=Mode.WITHHOLD,
            step=rules.rested(s, Swap(r, record.start(r, s.fresh_instance))),
        )
    lost = "the VM is gone while part of its disk was in its memory only"
    advice = "this image is never started by itself; choose the other host's image"
    if s.who.shares_disk:
        advice = "nobody starts it by itself; restore it, or expect a broken file system"
    return Decision(State.STUCK, f"{lost}: {advice}", mode=Mode.WITHHOLD)


def _powered_off(s: Snapshot, r: Record) -> Decision:
    here = Decision(State.SOLO, "")
    if r.disk is Disk.WHOLE:
        return poweroff.written_down(s, r, here)
    return _commit(s, r, poweroff.merging(here))


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
    if vm.waits_ns is not None:
        text = "alone, unprotected: the VM stands until its disk answers"
        due = s.now_ns - vm.waits_ns >= s.timing.retry_ns
        return replace(alone, sentence=text, step=ContinueAlone() if due else None)
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
    if state is None or not s.peer_heard:
        return _nobody_there(s)
    if not s.link_heard:
        return "the link is cut"
    if state.leaving or state.state not in (State.STANDBY.value, State.JOINING.value):
        return f"{s.who.peer} is not standing by"
    return "paused by the operator" if s.paused else _no_attempt(s)


def _no_attempt(s: Snapshot) -> str:
    """Why a partner that is there is not tried now."""
    if differs := rules.unlike(s):
        return f"{s.who.peer} cannot have a replica: {differs}"
    refused_ns = s.checkpoints.refused_ns
    if refused_ns is not None and s.now_ns - refused_ns < _SAID_LATE_NS:
        return "QEMU may say once more that the last secondary's disk did not take a write"
    if s.now_ns < s.rest_until_ns:
        return f"resting after a pairing that failed: {s.rest_why}"
    return ""


def _nobody_there(s: Snapshot) -> str:
    """Its host may live and answer that nobody listens on our port: that port follows from the VM's
    name."""
    if s.peer.away_since_ns is None:
        return f"{s.who.peer} is not heard"
    return (
        f"no daemon of this VM listens on {s.who.peer}: does it run there, with the same vm.name "
        "and link.heartbeat-port?"
    )
