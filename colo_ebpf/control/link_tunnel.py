# SPDX-License-Identifier: GPL-2.0-only
"""A tunnel of WireGuard carries the link: carries out what `peer.tunnel_keys` says, and looks after
device, addresses, routes and policies. They outlive the daemon, as the VM does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import Any

from colo_ebpf.control.core.core import Core
from colo_ebpf.control.decision.snapshot import MS
from colo_ebpf.control.link_upkeep import AGAIN_NS, LOOK_EVERY_NS, LinkUpkeep
from colo_ebpf.control.peer import tunnel_keys
from colo_ebpf.control.peer.key_ring import KeyRing
from colo_ebpf.control.peer.tunnel_keys import Meet
from colo_ebpf.datapath.net import netdev, vxlan, wgdevice, wireguard, xfrm
from colo_ebpf.datapath.net.wireguard import Contact, TunnelEnds
from colo_ebpf.errors import AttachError, ControlError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Through:
    """One tunnel, and what it is made over. `mtu`: of the guest's largest packets."""

    ends: TunnelEnds
    underlay: str
    mtu: int

    def set_up(self) -> bytes:
        """Whatever is lacking of it; returns this side's public key. Blocks; AttachError."""
        ends = self.ends
        need = wireguard.needed_mtu(self.mtu, ends.local)
        vxlan.check_link_mtu(self.underlay, self.mtu, need)
        carries = netdev.mtu_of(self.underlay) - wireguard.overhead_bytes(ends.local)
        public_key = wgdevice.set_up(ends, carries)
        if xfrm.lacking(ends.frames_only):
            xfrm.require(ends.frames_only)
        return public_key

    def remove(self) -> None:
        """Nothing of it stays."""
        wgdevice.remove(self.ends)
        xfrm.remove(self.ends.frames_only)


def kernel_lacks() -> str:
    """Why the kernel alone cannot do it; "": it can."""
    if why := xfrm.why_no_policies():
        return f"it cannot close a port to others: {why}"
    return wgdevice.kernel_lacks()


def why_not() -> str:
    """Why no tunnel can be had on this host, of the kernel's or a program's; "": one can."""
    if why := xfrm.why_no_policies():
        return f"the kernel cannot close a port to others ({why})"
    why = wgdevice.kernel_lacks()
    if why and not wgdevice.program_is_there():
        return f"the kernel has none ({why}), and {wgdevice.PROGRAM} is not installed"
    return ""


def begin(through: Through) -> None:
    """Before anything else of the daemon's uses the addresses. ControlError."""
    try:
        through.set_up()
        maker = wgdevice.maker_of(through.ends.device)
    except AttachError as e:
        raise ControlError(f"the link's tunnel: {e}") from e
    _log.info("the link goes through %s, WireGuard of %s", through.ends.device, maker)


class LinkTunnel(LinkUpkeep[Meet]):
    """Of one VM. `core` holds what the peer is told, and what it said."""

    def __init__(self, through: Through, peer: str, ring: KeyRing, core: Core) -> None:
        super().__init__("the link's tunnel", "packets")
        self._through, self._peer, self._ring, self._core = through, peer, ring, core
        self._met: Meet | None = None
        self._maker = ""
        self._handshake_s = 0

    def take(self, ring: KeyRing) -> None:
        """The pair's keys have changed."""
        self._ring = ring

    def due(self, now_ns: int) -> Meet | bool:
        """Is there anything to do? Cheap. Whom to meet, or True for a look at the device."""
        if self.rests(now_ns):
            return False
        if now_ns >= self._look_due_ns:
            return True
        state, link = self._core.peer.state, self._core.link
        if state is None or not link.tunnel:
            return False
        return tunnel_keys.next_step(state.tunnel, link.key, self._met) or False

    async def _carry_out(self, what: Meet, now_ns: int) -> None:
        await asyncio.to_thread(self._meet, what)
        self._met = what
        self._look_due_ns = min(self._look_due_ns, now_ns + AGAIN_NS)  # is there a session?
        _log.info("the tunnel to %s has the end and the key that it told", self._peer)

    def _meet(self, peer: Meet) -> None:
        pair_key = self._ring.find(peer.key)
        if pair_key is None:
            raise AttachError(f"the key {peer.key} is not there any more")
        ends = self._through.ends
        shared = tunnel_keys.preshared_key(pair_key, self._core.link.tunnel, peer.public_key)
        wgdevice.meet(ends, Contact(peer.public_key, shared, (ends.peer, ends.port)))

    async def _look(self, now_ns: int) -> None:
        """Did somebody remove or change anything? Is there a session?"""
        ends = self._through.ends
        public_key = await asyncio.to_thread(self._through.set_up)
        self._maker = await asyncio.to_thread(wgdevice.maker_of, ends.device)
        device = await asyncio.to_thread(wgdevice.read, ends)
        if public_key != self._core.link.tunnel:
            self._told_of(public_key)
        self._handshake_s = 0
        for contact in device.contacts:
            if self._met is not None and contact.public_key == self._met.public_key:
                self._handshake_s = contact.handshake_s
                if contact.endpoint == (ends.peer, ends.port):
                    break
        else:
            self._met = None  # others have changed it, or it speaks from elsewhere: told again
        self._count()
        self._look_due_ns = now_ns + LOOK_EVERY_NS

    def _told_of(self, public_key: bytes) -> None:
        if self._core.link.tunnel:
            _log.warning("somebody has removed the link's tunnel: a new one is made")
        self._met = None
        self._core.agreed_on(replace(self._core.link, tunnel=public_key))

    def status(self, now_ns: int) -> dict[str, Any]:
        """Plain values. `now_ns` of no use: handshakes have the time of day."""
        age_ns = None
        if self._handshake_s:
            age_ns = max(0, time.time_ns() - self._handshake_s * 1_000_000_000)
        link = self._core.link
        return {
            "security": "wireguard",
            "agreed": tunnel_keys.agreed(age_ns),
            "seals_with": wireguard.as_text(self._met.public_key) if self._met else None,
            "opens": wireguard.as_text(link.tunnel) if link.tunnel else None,
            "key_age_ms": None if age_ns is None else age_ns / MS,
            "refused": self._refused_so_far(),
            "by": self._maker,
            "warning": "",
        }
