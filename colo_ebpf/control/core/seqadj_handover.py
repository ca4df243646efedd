# SPDX-License-Identifier: GPL-2.0-only
"""Handing lasting sequence offsets to a new secondary, inside the heartbeats. No I/O.

The primary sends the part that follows what the secondary says it has; every heartbeat says
both again, so that nothing needs an answer of its own. The pair is written down only once the
secondary has them all: after its takeover the clients' connections need them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from colo_ebpf.control.peer.state import PeerState

PER_DATAGRAM = 40  # of 20 bytes each: a heartbeat stays in one packet


@dataclass(slots=True)
class OffsetCopy:
    """Both sides of one pairing attempt, whose vni tells it from others."""

    offered: list[bytes] = field(default_factory=list)
    have: int = 0
    _vni: int = 0

    def offer(self, entries: list[bytes]) -> None:
        """Primary: these are to be handed over."""
        self.offered = entries

    def part(self, peer: PeerState | None) -> tuple[int, list[bytes]]:
        """Primary: (index, entries) to send next."""
        at = min(peer.offsets_have if peer is not None else 0, len(self.offered))
        return at, self.offered[at : at + PER_DATAGRAM]

    def begin(self, vni: int) -> None:
        """Secondary: another pairing begins anew."""
        if vni != self._vni:
            self._vni, self.have = vni, 0

    def take(self, peer: PeerState) -> list[bytes]:
        """Secondary: what is new in this datagram."""
        if peer.offsets_at != self.have or not peer.offsets:
            return []
        self.have += len(peer.offsets)
        return list(peer.offsets)
