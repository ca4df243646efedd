# SPDX-License-Identifier: GPL-2.0-only
"""What an operator asked for, step by step. Part of `decide`; pure.

A switchover: the primary takes a last checkpoint, begins no other, and writes the claim of the
secondary into the record. All that follows is a failover's way: the secondary takes over, the old
primary is withheld until it reads `active`, and gets the claim back if the other one cannot. With a
shared disk the primary ends its VM instead, and concedes: two must not write there.

A forced failover: this host bids although it would not by itself, and goes on although its disk
failed. Everything else that stands in the way of going on alone still does.

A request is answered once, with a sentence, and forgotten: when it is fulfilled, when something
stands in its way, when the daemon ends.
"""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.control.checkpoint.primary import Cause
from colo_ebpf.control.decision import poweroff, record
from colo_ebpf.control.decision.actions import Decision, EndVm, State, Swap
from colo_ebpf.control.decision.record import Kind, Record, host_of
from colo_ebpf.control.decision.rules import failed, reasserted, rested
from colo_ebpf.control.decision.snapshot import MS, Request, Snapshot
from colo_ebpf.control.peer.state import Answer
from colo_ebpf.model import Mode

FORCED = "forced by the operator"
_BRING_BACK = "bring the arbiter back"
_ARBITER_AWAY = f"{_BRING_BACK}; `colo-ebpf arbiter init` only when every VM of this name has ended"

# --- before it begins ---------------------------------------------------------------------


def no_switchover(s: Snapshot, d: Decision) -> str:
    """Why none can be begun ("" if it can)."""
    r = s.record
    if s.request is not None:
        return "another planned operation is under way"
    if r is None or r.kind is not Kind.PAIRED or d.state not in (State.PRIMARY, State.SECONDARY):
        return f"there is no protected pair: {d.sentence}"
    if d.state is State.SECONDARY and (s.vm is None or not s.vm.fit):
        return f"the VM on {s.who.host} is unfit to take over"
    return _peer_in_the_way(s, r)


def _peer_in_the_way(s: Snapshot, r: Record) -> str:
    """What the other host lacks for a switchover."""
    state, peer = s.peer.state, s.who.peer
    if state is None or not s.peer_heard:
        return f"{peer} is not heard"
    cut = s.link_cut
    gone = s.peer_vm_gone(r.partner_of(_own(s, r)))
    paired = state.state in (State.PRIMARY.value, State.SECONDARY.value)
    reasons = (
        "the link is cut" if cut else "",
        f"the daemon on {peer} is away: start it first" if s.peer.away_since_ns is not None else "",
        f"{peer} says that its VM is gone" if gone else "",
        "" if state.fit else f"the VM on {peer} is unfit: {state.want or 'see its log'}",
        "" if paired else f"{peer} says that it is {state.state}",
    )
    return next(filter(None, reasons), "")


def _own(s: Snapshot, r: Record) -> str:
    return r.owner if host_of(r.owner) == s.who.host else r.other


def no_force(s: Snapshot, generation: int) -> str:
    """Why no failover can be forced here ("" if it can)."""
    r, vm = s.record, s.vm
    if s.request is not None:
        return "another planned operation is under way"
    if r is None:
        return f"the record is not known: {s.read_error or 'it is being read'}; {_ARBITER_AWAY}"
    if r.generation != generation:
        return (
            f"the record is at generation {r.generation}, not {generation}: {r.describe()}; "
            "decide anew"
        )
    if r.kind is Kind.ACTIVE and host_of(r.owner) == s.who.host:
        return "the VM here is the one that serves"
    if vm is None or not r.names(vm.instance) or s.own_vm(vm.instance) is None:
        return f"{s.who.host} has no whole VM that the record names; it is {r.describe()}"
    return _peer_serves(s, r, vm.instance)


def _peer_serves(s: Snapshot, r: Record, instance: str) -> str:
    """The partner's VM is heard and well: this is no case for force."""
    state = s.peer.state
    if state is None or not s.peer_heard or not r.partner_of(instance):
        return ""
    if s.peer_vm_gone(r.partner_of(instance)) or not state.fit:
        return ""
    return (
        f"{s.who.peer} is heard and its VM is well: "
        "`colo-ebpf switchover` lets the hosts change places"
    )


def cost_of_force(s: Snapshot) -> str:
    """One question for the operator, after `no_force` found nothing."""
    host, r = s.who.host, s.record
    assert r is not None  # no_force looked
    base = f"Generation {r.generation} is {r.describe()}. Let the VM on {host} serve alone?"
    if s.vm is not None and not s.vm.fit:
        return (
            f"{base} Its disk failed: what clients were told, and what {s.who.peer} wrote, may be "
            "missing from it for good."
        )
    return f"{base} It has all that clients were told; the VM on {s.who.peer} is ended for good."


# --- under way ----------------------------------------------------------------------------


def forced(s: Snapshot, r: Record) -> bool:
    """The operator wants the VM here to go on alone, and the record is as it was then."""
    w = s.request
    if w is None or not w.overrides:
        return False
    won = r.kind is Kind.CLAIMED and r.owner == w.winner and r.generation == w.overrides + 1
    return r.generation == w.overrides or won


def beside_the_well(s: Snapshot, r: Record, paired: Decision) -> Decision:
    """The primary of a pair that is well: hand over, if that is asked for."""
    w = s.request
    if w is None or w.winner != r.other:
        return reasserted(s, r, paired)
    if _in_the_way(s, r, w):
        return paired
    facts, loaded, peer = s.checkpoints, s.checkpoints.loaded, s.who.peer
    of_now = loaded is not None and loaded.triggered_ns == facts.triggered_ns
    ready = loaded is not None and loaded.armed and loaded.triggered_ns >= w.at_ns
    if not ready or not facts.idle:
        again = facts.triggered_ns < w.at_ns or (of_now and not ready)
        text = f"switchover to {peer}: taking a last checkpoint"
        return replace(paired, sentence=text, ask=Cause.SWITCHOVER if again else None)
    if s.who.shares_disk:
        text = f"switchover to {peer}: ending the VM here, which writes to the same disk"
        return replace(paired, sentence=text, step=rested(s, EndVm(r.owner)), still=True)
    return replace(
        paired,
        sentence=f"switchover to {peer}: writing down that it takes over",
        step=rested(s, Swap(r, record.hand_over(r))),
        still=True,
    )


def ends_first(s: Snapshot, r: Record) -> bool:
    """With a shared disk a switchover ends the primary's VM, and concedes."""
    return s.who.shares_disk and s.request is not None and s.request.winner == r.other


def _in_the_way(s: Snapshot, r: Record, w: Request) -> str:
    """Why the switchover ends here, while the record still says `paired`."""
    waited_ns = s.now_ns - w.at_ns
    if host_of(r.owner) != s.who.host:
        late = waited_ns > 2 * s.timing.checkpoint_timeout_ns
        return f"{s.who.peer} did not begin" if late else ""
    if error := _not_written(s, w):
        return error
    if s.pending is not None and s.pending.owner == w.winner:
        return ""  # being written
    if waited_ns > s.timing.checkpoint_timeout_ns:
        return f"no checkpoint was loaded within {s.timing.checkpoint_timeout_ns // MS} ms"
    return s.checkpoints.broken or _peer_in_the_way(s, r)


def _not_written(s: Snapshot, w: Request) -> str:
    """The arbiter failed us since it was asked for."""
    if s.failure is None or s.failure.at_ns < w.at_ns or not failed(s, Swap):
        return ""
    doubt = "whether it was changed is known when the arbiter answers; " if s.pending else ""
    advice = _ARBITER_AWAY if w.overrides else _BRING_BACK
    return f"the record cannot be changed: {failed(s, Swap)}; {doubt}{advice}"


def kept_here(s: Snapshot) -> Decision:
    """The primary's VM is gone; while paused it does not change hosts by itself."""
    return Decision(
        State.LOST,
        f"paused by the operator: not conceding to {s.who.peer} although the VM here is gone; "
        f"`colo-ebpf resume`, or `failover --force` on {s.who.peer}",
        mode=Mode.WITHHOLD,
    )


# --- its end ------------------------------------------------------------------------------


def answered(s: Snapshot, d: Decision) -> Decision:
    """The decision, with what became of the request if that is known by now."""
    if s.request is None or s.record is None:
        return d
    of = _of_force if s.request.overrides else _of_switchover
    of = poweroff.answered if s.request.starts else of
    return replace(d, answer=of(s, s.record, s.request, d))


def _of_force(s: Snapshot, r: Record, w: Request, d: Decision) -> Answer | None:
    if r.kind is Kind.ACTIVE and r.owner == w.winner:
        return Answer(w.token, True, f"{s.who.host} serves now")
    why = _not_written(s, w)
    if not forced(s, r):
        why = f"the record moved on: {r.describe()}"
    elif s.own_vm(w.winner) is None or d.state is State.STUCK:
        why = d.sentence
    return Answer(w.token, False, f"no failover: {why}") if why else None


def _of_switchover(s: Snapshot, r: Record, w: Request, d: Decision) -> Answer | None:
    peers = s.peer.state.answer if s.peer.state is not None else None
    if w.here and peers is not None and peers.token == w.token:
        return peers
    if r.owner == w.winner and r.kind is not Kind.CLAIMED:
        return _done(s, r, w)
    if r.kind is Kind.CLAIMED and r.owner == w.winner:
        return None
    if r.kind is Kind.PAIRED and r.other == w.winner:
        why = _in_the_way(s, r, w)
        return Answer(w.token, False, f"no switchover: {why}") if why else None
    text = f"no switchover: {host_of(w.winner)} did not take over; {d.sentence}"
    return Answer(w.token, False, text)


def _done(s: Snapshot, r: Record, w: Request) -> Answer | None:
    """The old primary tells how long nothing left; the new one waits a little to hear it."""
    text = f"{host_of(w.winner)} serves now"
    if host_of(w.winner) != s.who.host:
        outage_ns = 0 if w.withheld_ns is None else s.now_ns - w.withheld_ns
        return Answer(w.token, True, text, outage_ns)
    heard = s.peer_heard
    if heard and s.now_ns - s.record_since_ns < 4 * s.timing.peer_timeout_ns:
        return None
    return Answer(w.token, True, text)
