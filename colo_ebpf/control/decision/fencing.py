# SPDX-License-Identifier: GPL-2.0-only
"""When the other host has to be turned off, or kept off the shared disks. Part of `decide`; pure,
but for the memory below.

A claim that still names the loser in `other` was made without asking it, unless it says that the
loser wrote it itself (a switchover). Before this host goes on alone (`before_solo`), or while it
does (`after_solo`), a command of the operator's turns the loser off. One that conceded or handed
over is left as it is. With a shared disk the fence is for the disk alone, and a secondary that lost
only reads it.

Where the disks can be reserved (`reserved`), the host that may write does that first, whoever was
asked: before its VM is started, and before it is active. Nobody has to be turned off then.
"""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.control.decision.actions import Decision, Fence, Read, Reserve, State, Step
from colo_ebpf.control.decision.record import Kind, Record, host_of
from colo_ebpf.control.decision.rules import failed, rested
from colo_ebpf.control.decision.snapshot import FenceFacts, FenceWhen, Snapshot
from colo_ebpf.errors import CannotFenceError, ColoError
from colo_ebpf.model import Mode

ATTEMPTS_AFTER_SOLO = 5
_REST_RETRIES = 10
_EARLIER_RUN = "claimed by an earlier run of this daemon"


def reserved(s: Snapshot, wanted: Decision) -> Decision:
    """What is wanted, or the reservation that has to come before it."""
    if not s.who.reserves or Reserve in s.done:
        return wanted
    text = "reserving the disk for this host"
    if error := failed(s, Reserve):
        text = f"output stays withheld: {text} failed, it is tried again: {error}"
    return replace(wanted, sentence=text, step=rested(s, Reserve()))


def before_solo(s: Snapshot, r: Record, activation: Decision) -> Decision:
    """The activation, or the fence that has to succeed before it."""
    fence = s.fence
    asked = r.given or not r.other
    reads = s.who.shares_disk and activation.mode is Mode.PRIMARY
    if fence.when is not FenceWhen.BEFORE_SOLO or asked or reads or Fence in s.done:
        return activation
    peer = s.who.peer
    if fence.hopeless:
        text = f"output stays withheld: {peer} cannot be fenced: {fence.error}; {_advice(s)}"
        return replace(activation, state=State.STUCK, sentence=text, step=None)
    if not fence.failures:
        step = Fence(peer, r.generation, fence.reason)
        return replace(activation, sentence=f"fencing {peer} before anything leaves", step=step)
    text = (
        f"output stays withheld: fencing {peer} failed, it is tried again: {fence.error}; "
        f"{_advice(s)}"
    )
    if s.read_error:
        text = f"{text}; the record cannot be read: {s.read_error}"
    return replace(activation, sentence=text, step=_once_more(s, r) if _rested(s) else None)


def _once_more(s: Snapshot, r: Record) -> Step | None:
    """The peer may have taken the claim back meanwhile: then it is not ours to turn off."""
    if s.last_read_ns <= s.fence.failed_ns:
        return rested(s, Read())
    return Fence(s.who.peer, r.generation, s.fence.reason)


def _advice(s: Snapshot) -> str:
    """With a shared disk none goes on alone without a fence."""
    way = "let fence.command exit 0" if s.who.shares_disk else 'set fence.when = "off"'
    return f"if {s.who.peer} is certainly off, {way} and restart this daemon"


def _rested(s: Snapshot) -> bool:
    rest_ns = _REST_RETRIES * s.timing.retry_ns
    return not s.fence.failures or s.now_ns - s.fence.failed_ns >= rest_ns


def after_solo(s: Snapshot, alone: Decision) -> Decision | None:
    """The fence while the VM here serves already; None: there is none to run (any more)."""
    fence = s.fence
    if fence.due is None or _given_up(fence) or _stands_by(s):
        return None
    text = f"alone, unprotected: fencing {s.who.peer}"
    if fence.error:
        text = f"{text}: trying again after {fence.error}"
    return replace(alone, sentence=text, step=fence.due if _rested(s) else None)


def not_fenced(s: Snapshot) -> str:
    """What to add to a sentence if the fence was given up ("" if it was not)."""
    if s.fence.due is None or not _given_up(s.fence):
        return ""
    return f"; {s.who.peer} could not be fenced: {s.fence.error}"


def _given_up(fence: FenceFacts) -> bool:
    return fence.hopeless or fence.failures >= ATTEMPTS_AFTER_SOLO


def _stands_by(s: Snapshot) -> bool:
    """The loser has read that it lost, and ended its VM."""
    state = s.peer.state
    heard = state is not None and s.peer_heard
    return heard and state is not None and state.state in (State.STANDBY.value, State.JOINING.value)


class FenceMemory:
    """What one run of the daemon remembers of the fence of its claim. It is the core's."""

    def __init__(self, when: FenceWhen, host: str, peer: str) -> None:
        self._host, self._peer = host, peer
        self.facts = FenceFacts(when)

    def learned(self, old: Record | None, new: Record, why: str) -> None:
        """The record has another meaning now; `why` is what we were doing."""
        ours = host_of(new.owner) == self._host
        if ours and new.kind is Kind.CLAIMED:
            reason = why if old else _EARLIER_RUN
            self.facts = FenceFacts(self.facts.when, reason=reason)
        elif ours and new.kind is Kind.ACTIVE and old is not None:
            self._active(old, new)
        else:
            self.facts = FenceFacts(self.facts.when)

    def _active(self, old: Record, new: Record) -> None:
        """From a claim on that named the loser; a later change of an active record is no news."""
        if old.kind is Kind.ACTIVE and old.owner == new.owner:
            return
        known = self.facts
        due = None
        claimed = old.kind is Kind.CLAIMED and old.owner == new.owner and old.other != ""
        if claimed and not old.given and known.when is FenceWhen.AFTER_SOLO:
            due = Fence(self._peer, old.generation, known.reason)
        self.facts = FenceFacts(known.when, due=due)

    def ended(self, error: ColoError | None, now_ns: int) -> None:
        """The command ended."""
        known = self.facts
        if error is None:
            self.facts = FenceFacts(known.when, reason=known.reason)
            return
        self.facts = replace(
            known,
            failures=known.failures + 1,
            error=str(error),
            failed_ns=now_ns,
            hopeless=isinstance(error, CannotFenceError),
        )

    def pairs(self) -> None:
        """A new pairing is offered to the loser: it is not to be turned off any more."""
        self.facts = replace(self.facts, due=None)
