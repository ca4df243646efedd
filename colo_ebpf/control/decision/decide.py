# SPDX-License-Identifier: GPL-2.0-only
"""What this daemon should do now: one pure function. Read it from top to bottom.

The way of a failover: paired (`_primary`, `_secondary`: who bids, and why) → won (`_claimed`:
act, fence, then activate) or lost (`_lost`: withheld until the winner is active) → alone
(`solo`). The way into a pair is in `pairing`.

Nothing here is remembered between calls: a daemon that was killed decides the same again.

- Only a daemon whose VM is alive, whole and fit bids; one without a VM concedes.
- Nothing leaves on its own before `active` is confirmed. The loser's VM is ended only when the
  record no longer names it.
- An unreachable arbiter leaves everything withheld.
- While an operator has paused protection the VM stays where it serves, alone or not at all.
"""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.control.checkpoint.primary import Cause
from colo_ebpf.control.decision import (
    fencing,
    operator,
    pairing,
    poweroff,
    protection,
    record,
    relay,
    solo,
)
from colo_ebpf.control.decision.actions import (
    ContinueAlone,
    Decision,
    EndVm,
    Read,
    Side,
    StartVm,
    State,
    Step,
    Swap,
    TakeOver,
    TaskKind,
    Yank,
)
from colo_ebpf.control.decision.record import Kind, Record, host_of
from colo_ebpf.control.decision.rules import (
    failed,
    looked_up,
    no_frames,
    paired_with,
    reasserted,
    rested,
)
from colo_ebpf.control.decision.snapshot import FenceWhen, Snapshot, VmFacts
from colo_ebpf.model import Mode, Settled, VmRole


def decide(s: Snapshot) -> Decision:
    """The decision for this snapshot."""
    if s.record is None:
        why = f": {s.read_error}" if s.read_error else ""
        return Decision(
            State.UNKNOWN,
            f"reading the arbiter's record{why}",
            step=rested(s, Read()),
            task=s.task,
            gap="the record is not known",
        )
    decision = relay.to_the_winner(s, s.record, _for_record(s, s.record))
    if _behind(s, s.record) or _unread(s, s.record, decision):
        decision = replace(decision, step=rested(s, Read()))
    decision = replace(decision, gap=protection.gap(s, decision))
    return operator.answered(s, decision)


def _for_record(s: Snapshot, r: Record) -> Decision:
    me = s.who.host
    if s.vm is not None and s.vm.alive and not _may_live(s, r, s.vm):
        error = failed(s, EndVm)
        return Decision(
            State.ENDING,
            f"ending the VM {s.vm.instance}: {error or f'the record is {r.describe()}'}",
            mode=Mode.WITHHOLD,
            step=rested(s, EndVm(s.vm.instance)),
            cancels=True,
        )
    if r.kind is Kind.COLD:
        return _cold(s, r)
    if r.kind is Kind.OFF:
        return poweroff.off(s, r)
    if host_of(r.owner) == me:
        rules = {Kind.CLAIMED: _claimed, Kind.ACTIVE: solo.active, Kind.PAIRED: _primary}
        return rules[r.kind](s, r)
    if host_of(r.other) == me:
        return _secondary(s, r) if r.kind is Kind.PAIRED else _lost(s, r)
    return pairing.standby(s, r)


def _may_live(s: Snapshot, r: Record, vm: VmFacts) -> bool:
    """The record names it, or it is being made into a replica of the one that is named."""
    joins = s.task is not None and s.task.kind is TaskKind.JOIN and s.task.instance == vm.instance
    return r.names(vm.instance) or (joins and r.kind is Kind.ACTIVE)


def _behind(s: Snapshot, r: Record) -> bool:
    """The peer speaks of a newer generation than we have read."""
    state = s.peer.state
    return state is not None and state.generation > r.generation


def _unread(s: Snapshot, r: Record, d: Decision) -> bool:
    """The arbiter did not answer when a pair was cut. The cut has healed since, and the arbiter
    answers who looks at it: nobody would ever read the record otherwise."""
    idle = d.step is None and s.pending is None and s.request is None
    return idle and r.kind is Kind.PAIRED and s.read_error != "" and s.arbiter_error == ""


# --- cold start ---------------------------------------------------------------------------


def _cold(s: Snapshot, r: Record) -> Decision:
    if r.owner != s.who.host:
        return pairing.standby(s, r)
    if r.generation == 1 and not s.who.starts:  # an operator's word; later ones know the image
        return Decision(
            State.STUCK,
            "the record says that this host starts the VM, but its [start] role is secondary",
            mode=Mode.WITHHOLD,
        )
    return Decision(
        State.STARTING,
        _or_unreachable(s, "starting the VM from this host's image"),
        mode=Mode.WITHHOLD,
        step=rested(s, Swap(r, record.start(r, s.fresh_instance))),
    )


# --- paired: who bids, and why --------------------------------------------------------------


def _primary(s: Snapshot, r: Record) -> Decision:
    vm = s.own_vm(r.owner)
    if vm is None:
        kept = s.paused and not operator.ends_first(s, r)
        return operator.kept_here(s) if kept else _concede(s, r, r.owner)
    paired = Decision(
        State.PRIMARY,
        "primary of a protected pair",
        mode=Mode.PRIMARY,
        pairing=paired_with(s, r.vni),
        side=Side.PRIMARY,
    )
    if vm.off_at_s is not None and vm.fit:  # else its image lacks what the secondary's has
        return poweroff.written_down(s, r, paired)
    if operator.forced(s, r):
        return _bid(s, r, paired, vm, operator.FORCED)
    why = s.checkpoints.broken or _peer_unusable(s, r.other)
    silent = s.link_cut
    if not why and not silent:
        return operator.beside_the_well(s, r, _beside_the_sick(s, paired))
    if not why and _daemon_away(s):
        text = "the secondary's daemon is away: waiting for it, its VM goes on"
        since = s.peer.away_since_ns or 0
        probe = Cause.PROBE if s.checkpoints.triggered_ns < since else None
        return replace(paired, sentence=text, ask=probe)
    return _bid(s, r, paired, vm, why or _silence(s))


def _beside_the_sick(s: Snapshot, paired: Decision) -> Decision:
    """Its disk failed; the checkpoint it asks for makes it whole again."""
    state = s.peer.state
    if state is None or not state.heals:
        return paired
    text = f"{s.who.peer} is unfit until its next checkpoint: {state.want}"
    return replace(paired, sentence=text)


def _secondary(s: Snapshot, r: Record) -> Decision:
    vm = s.own_vm(r.other)
    if vm is None:
        return _concede(s, r, r.other)
    paired = Decision(
        State.SECONDARY,
        "secondary of a protected pair",
        mode=Mode.SECONDARY,
        pairing=paired_with(s, r.vni),
        side=Side.SECONDARY,
    )
    why = operator.FORCED if operator.forced(s, r) else _peer_unusable(s, r.owner)
    if why:
        return _bid(s, r, paired, vm, why)
    if s.peer_heard:
        return _secondary_beside_living(s, r, paired, vm)
    if vm.colo_exit_ns is None and _daemon_away(s):
        text = "the primary's daemon is away: waiting for it, its VM goes on"
        return replace(paired, sentence=text)
    return _bid(s, r, paired, vm, _silence(s))


def _secondary_beside_living(s: Snapshot, r: Record, paired: Decision, vm: VmFacts) -> Decision:
    """The primary's daemon is heard: if the pair is cut, it may go on alone first."""
    patience = s.timing.prefer_primary_ns
    if s.peer.cut_ns > s.timing.peer_timeout_ns + patience:
        return _bid(s, r, paired, vm, _silence(s))
    if s.link_cut:
        return replace(paired, sentence=f"{_silence(s)}: the primary may go on alone first")
    if vm.colo_exit_ns is not None and s.now_ns - vm.colo_exit_ns > patience:
        return _bid(s, r, paired, vm, "COLO ended: the connection to the primary's QEMU is gone")
    return reasserted(s, r, paired)


def _peer_unusable(s: Snapshot, instance: str) -> str:
    """What the peer itself has said of its VM; it holds for this instance for ever."""
    state = s.peer.state
    if state is None:
        return ""
    if s.peer_vm_gone(instance):
        return f"{s.who.peer} says that its VM is gone"
    return "" if state.fit or state.heals else f"{s.who.peer} says that its VM is unfit"


def _concedes_soon(s: Snapshot, r: Record, vm: VmFacts, why: str) -> str:
    """Who bids turns the other host off, if there is a fence. One that is heard concedes by itself
    if its VM is gone: it is given a moment to say so, and to do it. "": there is none to give."""
    heard = s.peer_heard and s.peer.away_since_ns is None and not s.link_cut
    fences = s.who.shares_disk or s.fence.when is not FenceWhen.OFF
    if not heard or not fences:
        return ""
    instance, peer = r.partner_of(vm.instance), s.who.peer
    ended_ns = None if vm.colo_exit_ns is None else s.now_ns - vm.colo_exit_ns
    if s.peer_vm_gone(instance):
        soon = ended_ns is None or ended_ns < s.timing.prefer_primary_ns
        return f"{peer} says that its VM is gone: it concedes" if soon else ""
    if s.who.shares_disk or _peer_unusable(s, instance):  # a secondary with one disk is not fenced
        return ""
    soon = ended_ns is not None and ended_ns < s.timing.peer_timeout_ns
    return f"{why}: {peer} may concede" if soon else ""


def _daemon_away(s: Snapshot) -> bool:
    """Its host answers that the daemon does not run: a restart, for a bounded time."""
    away = s.peer.away_since_ns
    return away is not None and s.peer.age_ns < s.timing.daemon_grace_ns


def _silence(s: Snapshot) -> str:
    if not s.peer_heard:
        return f"{s.who.peer} is not heard on any path"
    if not s.link_heard:
        return "the link is cut (the management path is not)"
    return no_frames(s)


def _bid(s: Snapshot, r: Record, paired: Decision, vm: VmFacts, why: str) -> Decision:
    if not vm.fit and not operator.forced(s, r):
        failed = "the VM here ends" if vm.closing else "this side's disk failed"
        text = f"{why}, but {failed}: not bidding, output withheld"
        return looked_up(s, replace(paired, sentence=text))
    if s.paused and host_of(r.owner) != s.who.host and not operator.forced(s, r):
        text = f"paused by the operator: not taking over although {why}"
        return looked_up(s, replace(paired, sentence=text))
    if not operator.forced(s, r) and (text := _concedes_soon(s, r, vm, why)):
        return replace(paired, sentence=text)
    return replace(
        paired,
        sentence=_or_unreachable(s, f"bidding to go on alone: {why}"),
        step=rested(s, Swap(r, record.claim(r, vm.instance))),
    )


def _concede(s: Snapshot, r: Record, instance: str) -> Decision:
    broken = s.vm is not None and s.vm.alive and s.vm.settled is Settled.BROKEN
    why = "is broken (new RAM, old disk)" if broken else "is gone"
    return Decision(
        State.LOST,
        _or_unreachable(s, f"conceding to {s.who.peer}: the VM here {why}"),
        mode=Mode.WITHHOLD,
        step=rested(s, Swap(r, record.concede(r, instance))),
    )


def _or_unreachable(s: Snapshot, sentence: str) -> str:
    error = failed(s, Swap)
    return f"{sentence}; output stays withheld: {error}" if error else sentence


# --- won --------------------------------------------------------------------------------------


def _claimed(s: Snapshot, r: Record) -> Decision:
    vm = s.own_vm(r.owner)
    if vm is None:
        return _claimed_without_vm(s, r)
    if vm.off_at_s is not None and vm.fit and r.image == s.who.host:
        return poweroff.written_down(s, r, Decision(State.CLAIMED, ""))
    if r.vni == 0:
        return _activate(s, r, State.STARTING, Mode.WITHHOLD)
    if not vm.fit and not operator.forced(s, r):
        return _ends() if vm.closing else _hand_back(s, r, "this side's disk failed")
    if r.image == s.who.host:
        return _continue_alone(s, r)
    taking_over = replace(_take_over(s, r, vm), side=Side.SECONDARY)
    return relay.from_the_loser(s, r, taking_over)


def _claimed_without_vm(s: Snapshot, r: Record) -> Decision:
    if r.other:
        return _concede(s, r, r.owner)
    if r.vni:
        return Decision(
            State.LOST,
            _or_unreachable(s, f"no VM is left: back to the image of {r.image}"),
            mode=Mode.WITHHOLD,
            step=rested(s, Swap(r, record.hand_to_image(r))),
        )
    error = failed(s, StartVm)
    start = Decision(
        State.STARTING,
        f"starting QEMU failed: {error}" if error else f"starting QEMU as {r.owner}",
        mode=Mode.WITHHOLD,
        step=rested(s, StartVm(VmRole.PRIMARY, r.owner), 10 * s.timing.retry_ns),
    )
    return fencing.reserved(s, start)


def _continue_alone(s: Snapshot, r: Record) -> Decision:
    """Primary: shut the sockets, drop the child, leave COLO, then activate.

    With a shared disk it is active first (`solo`): what it writes without its secondary
    ruins the disk for that one, and from `active` on no claim goes back.
    """
    if ContinueAlone in s.done or s.who.shares_disk:
        return _activate(s, r, State.CLAIMED, Mode.PRIMARY)
    return _act(s, r, ContinueAlone(), "leaving the pair to go on alone", Mode.PRIMARY)


def _take_over(s: Snapshot, r: Record, vm: VmFacts) -> Decision:
    """Secondary: shut the sockets, wait until no load can come any more, then leave COLO.

    With a shared disk it is active, and the loser off, before it leaves: to leave is to write to
    the disk, which is between two states meanwhile, and is nobody's to start.
    """
    if TakeOver in s.done:
        return _activate(s, r, State.CLAIMED, Mode.WITHHOLD)
    if vm.colo_exit_ns is None and Yank not in s.done:
        return _act(s, r, Yank(), "won: shutting the connections to the primary", None)
    waited_ns = s.now_ns - (s.yanked_ns if s.yanked_ns is not None else s.record_since_ns)
    late = waited_ns > s.timing.qmp_timeout_ns
    if not late and (vm.colo_exit_ns is None or vm.settled is Settled.OPEN):
        return Decision(State.CLAIMED, "won: waiting until the SVM is settled")
    if vm.settled is Settled.OPEN:
        return _hand_back(s, r, "the SVM hangs inside a load")
    if s.who.shares_disk:
        return _activate(s, r, State.CLAIMED, Mode.WITHHOLD)
    return _act(s, r, TakeOver(), "taking over", Mode.WITHHOLD)


def _act(s: Snapshot, r: Record, step: Step, sentence: str, mode: Mode | None) -> Decision:
    error = failed(s, type(step))
    if error and _peer_can(s, r):
        return _hand_back(s, r, error)
    text = f"{sentence}: trying again after {error}" if error else sentence
    return Decision(State.CLAIMED, text, mode=mode, step=rested(s, step))


def _activate(s: Snapshot, r: Record, state: State, mode: Mode) -> Decision:
    """The reservation and the fence are the last things before it: until then the claim can be
    handed back."""
    activation = Decision(
        state,
        _or_unreachable(s, "ready to go on alone: activating"),
        mode=mode,
        step=rested(s, Swap(r, record.activate(r))),
    )
    return fencing.reserved(s, fencing.before_solo(s, r, activation))


def _peer_can(s: Snapshot, r: Record) -> bool:
    """The loser is still there to take the claim back."""
    state = s.peer.state
    heard = state is not None and s.peer_heard
    usable = state is not None and state.fit and not _peer_unusable(s, r.other)
    return heard and r.other != "" and usable


def _ends() -> Decision:
    return Decision(State.CLAIMED, "the VM here ends: output withheld", mode=Mode.WITHHOLD)


def _hand_back(s: Snapshot, r: Record, why: str) -> Decision:
    if not _peer_can(s, r):
        text = f"cannot go on alone ({why}) and {s.who.peer} is not there to: output withheld"
        return Decision(State.STUCK, text)
    return Decision(
        State.CLAIMED,
        _or_unreachable(s, f"handing back to {s.who.peer}: {why}"),
        step=rested(s, Swap(r, record.concede(r, r.owner))),
    )


# --- lost ---------------------------------------------------------------------------------------


def _lost(s: Snapshot, r: Record) -> Decision:
    """Withheld until the winner is active, hands back, or has been away for good."""
    grace = s.timing.daemon_grace_ns
    abandoned = s.peer.age_ns > grace and s.now_ns - s.record_since_ns > grace
    vm = s.own_vm(r.other)
    side = Side.NONE if r.image == s.who.host else Side.SECONDARY
    forced = operator.forced(s, r)
    held = s.paused and r.image != s.who.host
    if vm is not None and (forced or (abandoned and vm.fit and not held)):
        why = operator.FORCED if forced else "it is abandoned"
        return Decision(
            State.LOST,
            _or_unreachable(s, f"taking back the claim of {s.who.peer}: {why}"),
            step=rested(s, Swap(r, record.claim(r, r.other))),
            side=side,
        )
    due = s.now_ns - s.last_read_ns >= s.timing.retry_ns // 3
    return Decision(
        State.LOST,
        f"{s.who.peer} claimed: output withheld until it is active or hands back",
        step=rested(s, Read()) if due else None,
        side=side,
    )
