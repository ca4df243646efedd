# SPDX-License-Identifier: GPL-2.0-only
"""Seals the link: carries out in the kernel what `peer.link_keys` says, and looks after it.

What has to be sealed is a matter of policies, which the data plane keeps (`datapath.wiring`); here
are the keys.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Any

from colo_ebpf.control.core.core import Core
from colo_ebpf.control.decision.snapshot import MS
from colo_ebpf.control.link_upkeep import LOOK_EVERY_NS, LinkUpkeep
from colo_ebpf.control.peer.key_ring import KeyRing
from colo_ebpf.control.peer.link_keys import (
    Action,
    Heard,
    LetGo,
    Offer,
    Open,
    SealWith,
    link_key,
)
from colo_ebpf.control.peer.state import PeerState
from colo_ebpf.datapath.net import ipsec, xfrm
from colo_ebpf.datapath.net.ipsec import LinkEnds
from colo_ebpf.errors import AttachError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Between:
    """One link: its ends, the names of the hosts, and their keys."""

    ends: LinkEnds
    host: str
    peer: str
    ring: KeyRing

    def carry_out(self, action: Action) -> None:
        """In the kernel. Blocks; raises AttachError."""
        match action:
            case Open(offer):
                key = self._key(offer, self.peer, self.host)
                xfrm.add_state(self.ends, inbound=True, spi=offer.spi, key=key)
            case SealWith(offer):
                key = self._key(offer, self.host, self.peer)
                xfrm.add_state(self.ends, inbound=False, spi=offer.spi, key=key)
            case LetGo(spi, inbound):
                xfrm.keep_states(self.ends, inbound=inbound, spi=spi)

    def _key(self, offer: Offer, sender: str, receiver: str) -> bytes:
        pair_key = self.ring.find(offer.key)
        if pair_key is None:
            raise AttachError(f"{self.peer} seals with a key that {self.host} does not have")
        return link_key(pair_key, offer, sender, receiver, ipsec.KEY_BYTES)


class LinkSeal(LinkUpkeep[Action]):
    """Of one VM. `core` holds what was agreed."""

    def __init__(self, between: Between, core: Core) -> None:
        super().__init__("the link's keys", "packets of IPsec")
        self.between, self._core = between, core

    def take(self, ring: KeyRing) -> None:
        """The pair's keys have changed."""
        self.between = replace(self.between, ring=ring)

    def due(self, now_ns: int) -> Action | bool:
        """Is there anything to do? Cheap. An action, or True for a look at the kernel."""
        if self.rests(now_ns):
            return False
        state = self._core.peer.state
        if state is not None:
            link = self._core.link.heard(_heard(state), now_ns)
            if link is not self._core.link:
                self._core.agreed_on(link)
            action = link.next(_heard(state), self._vni, now_ns)
            if action is not None:
                return action
        return now_ns >= self._look_due_ns

    @property
    def _vni(self) -> int:
        said = self._core.published
        return said.vni if said is not None else 0

    async def _carry_out(self, what: Action, now_ns: int) -> None:
        await asyncio.to_thread(self.between.carry_out, what)
        before = self._core.link
        self._core.agreed_on(before.done(what, self._vni, now_ns))
        self._tell(what)

    def _tell(self, action: Action) -> None:
        if isinstance(action, SealWith):
            _log.info("the link to %s is sealed with a new key", self.between.peer)

    async def _look(self, now_ns: int) -> None:
        """Did somebody remove a state? Was anything refused?"""
        self._look_due_ns = now_ns + LOOK_EVERY_NS
        link = self._core.link
        opens = await asyncio.to_thread(xfrm.states, self.between.ends, inbound=True)
        seals = await asyncio.to_thread(xfrm.states, self.between.ends, inbound=False)
        opened = link.offer is not None and link.offer.spi not in opens
        sealing = bool(link.seals_with) and link.seals_with not in seals
        if opened or sealing:
            _log.warning("somebody has removed the link's keys from the kernel: new ones are made")
            self._core.agreed_on(self._core.link.lost(opened=opened, sealing=sealing))
        self._count()

    def status(self, now_ns: int) -> dict[str, Any]:
        """Plain values."""
        link = self._core.link
        age = (now_ns - link.offered_ns) / MS if link.offer else None
        return {
            "security": "ipsec",
            "agreed": link.agreed,
            "seals_with": f"{link.seals_with:#x}" if link.seals_with else None,
            "opens": f"{link.offer.spi:#x}" if link.offer else None,
            "key_age_ms": age,
            "refused": self._refused_so_far(),
            "by": "the kernel",
            "warning": "",
        }


def _heard(state: PeerState) -> Heard:
    return Heard(state.boot, state.link_offer, state.seals_with, state.sealed_with)
