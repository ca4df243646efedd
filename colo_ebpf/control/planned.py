# SPDX-License-Identifier: GPL-2.0-only
"""What an operator asked for, step by step. Part of `decide`; pure.

A switchover: the primary takes a last checkpoint, begins no other, and writes the claim of the
secondary into the record. All that follows is a failover's way: the secondary takes over, the old
primary is withheld until it reads `active`, and gets the claim back if the other one cannot.

A wish is answered once, with a sentence, and forgotten: when it is fulfilled, when something
stands in its way, when the daemon ends.
"""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.control import record
from colo_ebpf.control.epoch import Reason
from colo_ebpf.control.facts import MS, Decision, Read, Snapshot, State, Swap, Wish
from colo_ebpf.control.peer import Answer
from colo_ebpf.control.record import Kind, Record, host_of
from colo_ebpf.control.rules import NO_VM, failed, rested

# --- before it begins ---------------------------------------------------------------------


def no_switchover(s: Snapshot, d: Decision) -> str:
    """Why none can be begun ("" if it can)."""
    r = s.record
    if s.wish is not None:
        return "another planned operation is under way"
    if r is None or r.kind is not Kind.PAIRED or d.state not in (State.PRIMARY, State.SECONDARY):
        return f"there is no protected pair: {d.sentence}"
    if d.state is State.SECONDARY and (s.vm is None or not s.vm.fit):
        return f"the VM on {s.who.host} is unfit to take over"
    return _peer_in_the_way(s, r)


def _peer_in_the_way(s: Snapshot, r: Record) -> str:
    """What the other host lacks for a switchover."""
    state, peer = s.peer.state, s.who.peer
    if state is None or s.peer.age_ns > s.timing.peer_timeout_ns:
        return f"{peer} is not heard"
    cut = s.peer.link_age_ns > s.timing.peer_timeout_ns
    gone = state.instance != r.partner_of(_own(s, r)) or state.health in NO_VM
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


# --- under way ----------------------------------------------------------------------------


def beside_the_well(s: Snapshot, r: Record, paired: Decision) -> Decision:
    """The primary of a pair that is well: hand over, if that is wished."""
    w = s.wish
    if w is None or w.winner != r.other:
        return _unknown_handover(s, r, paired)
    if _in_the_way(s, r, w):
        return paired
    loaded, turns, peer = s.turns.loaded, s.turns, s.who.peer
    of_now = loaded is not None and loaded.triggered_ns == turns.triggered_ns
    ready = loaded is not None and loaded.armed and loaded.triggered_ns >= w.at_ns
    if not ready or not turns.idle:
        again = turns.triggered_ns < w.at_ns or (of_now and not ready)
        text = f"switchover to {peer}: taking a last checkpoint"
        return replace(paired, sentence=text, ask=Reason.SWITCHOVER if again else None)
    return replace(
        paired,
        sentence=f"switchover to {peer}: writing down that it takes over",
        step=rested(s, Swap(r, record.claim(r, r.other))),
        still=True,
    )


def _unknown_handover(s: Snapshot, r: Record, paired: Decision) -> Decision:
    """A handover was sent, and whether it was written nobody said: look."""
    if s.pending is None or s.pending.owner != r.other:
        return paired
    due = s.now_ns - s.last_read_ns >= s.timing.retry_ns
    text = f"whether {s.who.peer} is to take over is not known: reading the record"
    return replace(paired, sentence=text, step=rested(s, Read()) if due else None)


def _in_the_way(s: Snapshot, r: Record, w: Wish) -> str:
    """Why the switchover ends here, while the record still says `paired`."""
    waited_ns = s.now_ns - w.at_ns
    if host_of(r.owner) != s.who.host:
        late = waited_ns > 2 * s.timing.checkpoint_timeout_ns
        return f"{s.who.peer} did not begin" if late else ""
    if s.failure is not None and s.failure.at_ns >= w.at_ns and failed(s, Swap):
        if s.pending is None:
            return f"the record cannot be changed: {failed(s, Swap)}"
        return (
            f"{failed(s, Swap)}; whether {s.who.peer} is to take over is not known until the "
            "arbiter answers"
        )
    if s.pending is not None and s.pending.owner == w.winner:
        return ""  # being written
    if waited_ns > s.timing.checkpoint_timeout_ns:
        return f"no checkpoint was loaded within {s.timing.checkpoint_timeout_ns // MS} ms"
    return s.turns.broken or _peer_in_the_way(s, r)


# --- its end ------------------------------------------------------------------------------


def answered(s: Snapshot, d: Decision) -> Decision:
    """The decision, with what became of the wish if that is known by now."""
    if s.wish is None or s.record is None:
        return d
    return replace(d, answer=_of_switchover(s, s.record, s.wish, d))


def _of_switchover(s: Snapshot, r: Record, w: Wish, d: Decision) -> Answer | None:
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


def _done(s: Snapshot, r: Record, w: Wish) -> Answer | None:
    """The old primary tells how long nothing left; the new one waits a little to hear it."""
    text = f"{host_of(w.winner)} serves now"
    if host_of(w.winner) != s.who.host:
        outage_ns = 0 if w.withheld_ns is None else s.now_ns - w.withheld_ns
        return Answer(w.token, True, text, outage_ns)
    heard = s.peer.age_ns <= s.timing.peer_timeout_ns
    if heard and s.now_ns - s.record_since_ns < 4 * s.timing.peer_timeout_ns:
        return None
    return Answer(w.token, True, text)
