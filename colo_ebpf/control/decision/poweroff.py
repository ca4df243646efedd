# SPDX-License-Identifier: GPL-2.0-only
"""The guest of the VM that serves powered itself off: a deliberate end. Part of `decide`; pure.

Written down first (`power_off`), then the VMs are ended: whatever fails in between, the record
says either that the VM serves, and it is started or taken over as after any death, or that it is
off, and then nobody starts it but an operator, on the host whose image is whole.
"""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.actions import Decision, StartVm, State, Swap
from colo_ebpf.control.decision.record import Kind, Record
from colo_ebpf.control.decision.rules import failed, looked_up, rested
from colo_ebpf.control.decision.snapshot import Request, Snapshot
from colo_ebpf.control.peer.state import Answer
from colo_ebpf.model import Mode

_ENDED = "the guest powered itself off"


def written_down(s: Snapshot, r: Record, here: Decision) -> Decision:
    """No checkpoint any more: QEMU would run the VM on past its poweroff."""
    assert s.vm is not None
    assert s.vm.off_at_s is not None
    error = failed(s, Swap)
    again = f": trying again after {error}" if error else ""
    return replace(
        here,
        sentence=f"{_ENDED}: writing that down{again}",
        step=rested(s, Swap(r, record.power_off(r, s.vm.off_at_s))),
        still=True,
        cancels=True,
    )


def merging(here: Decision) -> Decision:
    """Part of its disk is in its memory: that comes first."""
    text = f"{_ENDED}: merging the overlays into the image"
    return replace(here, sentence=text, still=True, cancels=True)


def off(s: Snapshot, r: Record) -> Decision:
    """The record says so."""
    at = f" at {record.clock(r.off_at_s)}" if r.off_at_s else ""
    text = f"{_ENDED}{at}: `colo-ebpf start` on {r.owner} starts it again"
    ended = Decision(State.OFF, text, mode=Mode.WITHHOLD)
    w = s.request
    if w is None or not w.starts or _again(s, w):
        return looked_up(s, ended)
    step = rested(s, Swap(r, record.start(r, w.winner)))
    return replace(ended, sentence="starting the VM: writing that down", step=step)


def _again(s: Snapshot, w: Request) -> bool:
    """It was started as asked, and its guest powered it off before it served: nobody asked to start
    it twice."""
    return s.record_since_ns > w.at_ns


# --- what an operator asks ------------------------------------------------------------------


def no_start(s: Snapshot) -> str:
    """Why it cannot be started here ("" if it can)."""
    r = s.record
    if s.request is not None:
        return "another planned operation is under way"
    if r is None:
        return f"the record is not known: {s.read_error or 'it is being read'}"
    if r.kind is not Kind.OFF:
        return f"the VM is not off: {r.describe()}"
    return "" if r.owner == s.who.host else f"its image is on {r.owner}: say it there"


def answered(s: Snapshot, r: Record, w: Request, d: Decision) -> Answer | None:
    """What became of the request to start it."""
    if r.kind is Kind.OFF and _again(s, w):
        return Answer(w.token, False, f"started, and {_ENDED} before it served")
    if r.kind is Kind.OFF:
        error = failed(s, Swap) if s.failure and s.failure.at_ns >= w.at_ns else ""
        text = f"not started: the record cannot be changed: {error}"
        return Answer(w.token, False, text) if error else None
    if r.owner != w.winner:
        return Answer(w.token, False, f"not started: {d.sentence}")
    if error := failed(s, StartVm):
        return Answer(w.token, False, f"not started yet, it is tried again: {error}")
    if r.kind is Kind.CLAIMED:
        return None
    return Answer(w.token, True, f"{s.who.host} serves now")
