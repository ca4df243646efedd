# SPDX-License-Identifier: GPL-2.0-only
"""What operators asked of this daemon, until it is answered. A restart forgets it."""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.control.decision.record import Kind, Record, host_of
from colo_ebpf.control.decision.snapshot import Request
from colo_ebpf.control.peer.state import Answer, PeerState


class Requests:
    """One at a time, and the last answer."""

    def __init__(self, host: str) -> None:
        self._host = host
        self.request: Request | None = None
        self.answer: Answer | None = None

    @property
    def asked_of_peer(self) -> str:
        """The switchover that the other host, the primary, is to begin ("" if none)."""
        w = self.request
        if w is None or w.overrides or w.starts:
            return ""
        return w.token if w.here and host_of(w.winner) == self._host else ""

    def hear(self, peer: PeerState | None, record: Record | None, now_ns: int) -> None:
        """Take over, as the primary, what was asked of the secondary."""
        self._look(record, now_ns)
        if self.request is not None or peer is None or not peer.switchover:
            return
        if record is None or record.kind is not Kind.PAIRED or host_of(record.owner) != self._host:
            return
        if self.answer is None or self.answer.token != peer.switchover:
            self.request = Request(peer.switchover, now_ns, record.other, here=False)

    def _look(self, record: Record | None, now_ns: int) -> None:
        w = self.request
        if w is None or record is None or w.withheld_ns is not None:
            return
        if record.kind is Kind.CLAIMED and record.owner == w.winner:
            self.request = replace(w, withheld_ns=now_ns)

    def settle(self, answer: Answer) -> None:
        """It is over."""
        self.request, self.answer = None, answer
