# SPDX-License-Identifier: GPL-2.0-only
"""While a secondary takes over from a VM that is gone, its host still passes on what clients send.

Part of `decide`; pure. The loser's tap is kept open (`process`), so that its bridge goes on giving
it the clients' frames, which go over the link as before; the winner's VM takes them although it is
withheld. Otherwise each would have to be sent again, after the client's timer of 200 ms at least.
Nothing but input goes this way: what leaves is decided elsewhere.
"""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.control.decision.actions import Decision
from colo_ebpf.control.decision.record import Kind, Record, host_of
from colo_ebpf.control.decision.rules import paired_with
from colo_ebpf.control.decision.snapshot import NO_VM, Snapshot
from colo_ebpf.model import Mode

_SERVED = (Mode.PRIMARY, Mode.PAIRING)


def to_the_winner(s: Snapshot, r: Record, d: Decision) -> Decision:
    """The primary's side: its VM is gone, the other one is not active yet."""
    gone = s.vm is not None and not s.vm.alive and s.mode in _SERVED
    owner = s.vm is not None and r.owner == s.vm.instance
    conceding = r.kind is Kind.PAIRED and owner and not s.paused
    lost = r.kind is Kind.CLAIMED and host_of(r.owner) == s.who.peer
    if d.mode is Mode.SOLO or not (gone and r.vni and (conceding or lost)):
        return d
    return replace(d, mode=Mode.PAIRING, pairing=paired_with(s, r.vni))


def from_the_loser(s: Snapshot, r: Record, d: Decision) -> Decision:
    """The winner's side: the other VM is known to be gone."""
    state = s.peer.state
    said = state is not None and state.instance == r.other and state.health in NO_VM
    conceded = not r.other
    return replace(d, pairing=paired_with(s, r.vni)) if said or conceded else d
