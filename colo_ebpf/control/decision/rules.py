# SPDX-License-Identifier: GPL-2.0-only
"""Small questions that several rules ask of a snapshot."""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.control.decision import compatibility, record
from colo_ebpf.control.decision.actions import Decision, Read, Step, Swap
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.decision.snapshot import Snapshot
from colo_ebpf.model import Pairing


def no_frames(s: Snapshot) -> str:
    """Which way the link carries no frames of the planes, though heartbeats come."""
    here, peer = s.who.host, s.who.peer
    way = (peer, here) if s.peer.bare_ns > s.timing.peer_timeout_ns else (here, peer)
    says = "the link carries heartbeats but no frames (firewall?)"
    return f"{says}: none of {way[0]} arrives on {way[1]}"


def unlike(s: Snapshot) -> str:
    """What the two hosts' configurations and machines differ in, that may not."""
    theirs = s.peer.state.compatibility if s.peer.state is not None else {}
    return compatibility.difference(s.who.compatibility, theirs, s.who.host, s.who.peer)


def rested(s: Snapshot, step: Step, rest_ns: int | None = None) -> Step | None:
    """The step, unless one of its kind has just failed. A swap rests after a failed read, too: the
    two would take turns without an end while the arbiter cannot be reached."""
    rest_ns = s.timing.retry_ns if rest_ns is None else rest_ns
    kinds = (Swap, Read) if isinstance(step, Swap) else type(step)
    failed = s.failure
    if failed and isinstance(failed.step, kinds) and s.now_ns - failed.at_ns < rest_ns:
        return None
    return step


def failed(s: Snapshot, kind: type) -> str:
    """Why the last step of that kind failed ("" if it did not)."""
    return s.failure.error if s.failure and isinstance(s.failure.step, kind) else ""


def paired_with(s: Snapshot, vni: int) -> Pairing:
    """What the link may carry."""
    return Pairing(vni, s.who.peer_link_address)


def looked_up(s: Snapshot, d: Decision) -> Decision:
    """A swap was sent that is not wanted any more, and whether it was written nobody said: look
    now and then, since it may yet be."""
    due = s.now_ns - s.last_read_ns >= 10 * s.timing.retry_ns
    if s.pending is None or s.request is not None or not due:
        return d
    return replace(d, step=rested(s, Read()))


def reasserted(s: Snapshot, r: Record, paired: Decision) -> Decision:
    """As `looked_up`, of a pair that is well: to write down that it is one settles it, for what was
    sent before cannot be written after that."""
    if s.pending is None or s.request is not None:
        return paired
    text = "whether the record was changed is not known: writing down that the pair is well"
    swap = rested(s, Swap(r, record.reassert(r)), 10 * s.timing.retry_ns)
    return replace(paired, sentence=text, step=swap or looked_up(s, paired).step)
