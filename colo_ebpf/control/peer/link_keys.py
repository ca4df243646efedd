# SPDX-License-Identifier: GPL-2.0-only
"""How two daemons agree on the keys that seal the link. Pure.

Each direction has keys of its own, and who receives chooses them: a number (SPI) and a salt, told
in the heartbeats, which are sealed themselves. The key follows from the pair's key, the salt, and
the run of the daemon that is to send: no two states ever have the same. In this order, so that no
frame is lost:

1. The receiver is ready to open what comes under the new key, and beside it under the old ones.
2. It offers the key. The sender seals with it from now on, and says so.
3. When no frame can be on its way through the kernel with an older key, the sender lets that go;
   later, when none can be under way on the wire, so does the receiver.

A key is new with each run of either daemon, with each pairing, with each key of the pair, and every
day. Daemons that end
leave the states in the kernel: VM and data plane go on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from colo_ebpf.control.peer.keys import SALT_BYTES, Purpose, derive

DAY_NS = 24 * 3600 * 1_000_000_000
DRAINED_NS = 2_000_000_000  # so long a frame may be on its way out with an older key
UNDER_WAY_NS = 10_000_000_000  # and so long until it is where it goes
_SPI_LEAST, _SPI_MOST = 0x100, 0xFFFF_FFFF


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seal what you send me with this."""

    spi: int
    salt: bytes
    to: str  # run (boot id) of the daemon that is to
    key: str = ""  # name of the pair's key of which it is made; see `key_ring`


def link_key(pair_key: bytes, offer: Offer, sender: str, receiver: str, length_bytes: int) -> bytes:
    """What both make of an offer. `sender`, `receiver`: names of the hosts."""
    names = (sender, receiver, offer.to, f"{offer.spi:x}")
    return derive(pair_key, offer.salt, Purpose.LINK, length_bytes, *names)


@dataclass(frozen=True, slots=True)
class Open:
    """Be ready for what is sealed with this."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class SealWith:
    """Seal with this from now on."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class LetGo:
    """Of the states one way keep none but this."""

    spi: int
    inbound: bool


Action = Open | SealWith | LetGo


@dataclass(frozen=True, slots=True)
class Heard:
    """What the peer's daemon said last."""

    boot: str
    offer: Offer | None
    seals_with: int  # SPI; 0: it has no key
    sealed_with: int  # SPI of the last key that it ever had


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """What was agreed, seen from this side. `boot`: this run of the daemon."""

    boot: str
    key: str = ""  # name of the pair's key that is in force
    offer: Offer | None = None  # what this side opens, as the peer is told
    vni: int = 0  # the pairing it was made for
    offered_ns: int = 0
    seals_with: int = 0
    sealing_ns: int | None = None  # since when, as long as it may still have older ones
    only: bool = False  # nothing older is opened any more
    sealed_since_ns: int | None = None  # the peer has used the offer
    sealed_with: int = 0  # the last one it ever had: none is used anew
    tunnel: bytes = b""  # instead of all these: public key of this side's end of a tunnel

    def next(self, peer: Heard | None, vni: int, now_ns: int) -> Action | None:
        """What is to be done now; `done` says that it was. One at a time."""
        if peer is None:
            return None
        theirs = peer.offer
        if theirs is not None and theirs.to == self.boot and theirs.spi != self.sealed_with:
            return SealWith(theirs)
        if self._is_due(peer, vni, now_ns):
            return Open(fresh_offer(peer.boot, self.key))
        return self._let_go(now_ns)

    def _let_go(self, now_ns: int) -> LetGo | None:
        if self.sealing_ns is not None and now_ns - self.sealing_ns >= DRAINED_NS:
            return LetGo(self.seals_with, inbound=False)
        since_ns = self.sealed_since_ns
        if self.offer is None or self.only or since_ns is None:
            return None
        late = now_ns - since_ns >= UNDER_WAY_NS
        return LetGo(self.offer.spi, inbound=True) if late else None

    def _is_due(self, peer: Heard, vni: int, now_ns: int) -> bool:
        if self.offer is None or (self.offer.to, self.offer.key) != (peer.boot, self.key):
            return True
        if peer.sealed_with == self.offer.spi != peer.seals_with:
            return True  # it has lost the key
        return bool(vni and vni != self.vni) or now_ns - self.offered_ns >= DAY_NS

    def heard(self, peer: Heard, now_ns: int) -> LinkKeys:
        """It may have begun to use the offer."""
        uses = self.offer is not None and peer.seals_with == self.offer.spi
        if uses and self.sealed_since_ns is None:
            return replace(self, sealed_since_ns=now_ns)
        return self

    def done(self, action: Action, vni: int, now_ns: int) -> LinkKeys:
        """The kernel has it."""
        match action:
            case Open(offer):
                return replace(
                    self,
                    offer=offer,
                    vni=vni or self.vni,
                    offered_ns=now_ns,
                    only=False,
                    sealed_since_ns=None,
                )
            case SealWith(offer):
                spi = offer.spi
                return replace(self, seals_with=spi, sealed_with=spi, sealing_ns=now_ns)
            case LetGo(_, inbound):
                return replace(self, only=True) if inbound else replace(self, sealing_ns=None)

    def lost(self, *, opened: bool, sealing: bool) -> LinkKeys:
        """Somebody has removed the states by which it opens, or seals: both agree anew."""
        here = replace(self, offer=None, sealed_since_ns=None) if opened else self
        return replace(here, seals_with=0, sealing_ns=None) if sealing else here

    @property
    def agreed(self) -> bool:
        """Both directions have a key of these two runs."""
        return bool(self.seals_with) and self.sealed_since_ns is not None


def fresh_offer(to: str, key: str, random: Callable[[int], bytes] = secrets.token_bytes) -> Offer:
    """One that there never was."""
    spi = int.from_bytes(random(4)) % (_SPI_MOST - _SPI_LEAST) + _SPI_LEAST
    return Offer(spi, random(SALT_BYTES), to, key)
