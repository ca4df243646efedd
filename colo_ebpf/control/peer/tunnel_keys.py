# SPDX-License-Identifier: GPL-2.0-only
"""How two daemons agree on the keys of a tunnel of WireGuard. Pure.

Each host makes a private key for each device, and keeps it there. The public one it tells in its
heartbeats, which are sealed with the pair's key. A preshared key that follows from the pair's key
and both public ones is asked for, too: to know the keys of a tunnel is not enough.

WireGuard takes the preshared key into account when it begins a session, every two minutes; a
session that is there goes on for three. So the pair's key is changed without the loss of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

from colo_ebpf.control.peer.keys import Purpose, derive

PUBLIC_BYTES = PRESHARED_BYTES = 32
SESSION_LASTS_NS = 180_000_000_000  # since its handshake: REJECT_AFTER_TIME of WireGuard


@dataclass(frozen=True, slots=True)
class Meet:
    """Let the peer's end be this one."""

    public_key: bytes
    key: str  # name of the pair's key of which the preshared one is made


def preshared_key(pair_key: bytes, one: bytes, other: bytes) -> bytes:
    """What both make of the pair's key and of the ends' public keys, in whichever order."""
    names = sorted((one.hex(), other.hex()))
    return derive(pair_key, b"", Purpose.TUNNEL, PRESHARED_BYTES, *names)


def next_step(said: bytes, key: str, met: Meet | None) -> Meet | None:
    """What is to be done now. `said`: public key of the peer's end, as it told last; `met`: what
    was done last."""
    wanted = Meet(said, key)
    known = len(said) == PUBLIC_BYTES and bool(key)
    return wanted if known and wanted != met else None


def agreed(handshake_age_ns: int | None) -> bool:
    """There is a session. `handshake_age_ns` None: there never was one."""
    return handshake_age_ns is not None and handshake_age_ns < SESSION_LASTS_NS
