# SPDX-License-Identifier: GPL-2.0-only
"""What is known here of the arbiter's record, and how surely. Pure."""

from __future__ import annotations

from colo_ebpf.control.decision.record import Record, weightier


class KnownRecord:
    """The newest record that was seen, and a swap of which nobody knows whether it was written."""

    def __init__(self, now_ns: int) -> None:
        self.record: Record | None = None
        self.since_ns = now_ns  # what it means was first known here
        self.confirmed = False  # it is our own successful swap, not only a read
        self.pending: Record | None = None
        self.read_error = ""
        self.last_read_ns = now_ns

    def learn(self, record: Record, mine: bool, now_ns: int) -> bool:
        """The newest record, and whether it is our own successful swap. False: it is known."""
        self.last_read_ns, self.read_error = now_ns, ""
        old = self.record
        if self.pending is not None and record.generation >= self.pending.generation:
            mine = mine or record.is_same(self.pending)
            self.pending = None
        same = old is not None and (record.generation, record.nonce) == (old.generation, old.nonce)
        self.confirmed = mine or (same and self.confirmed)
        if same:
            return False
        if old is None or record.meaning() != old.meaning():
            self.since_ns = now_ns
        self.record = record
        return True

    def swap_unknown(self, new: Record) -> None:
        """Nobody knows whether this swap was written."""
        self.confirmed = False
        self.pending = weightier(self.pending, new)
