# SPDX-License-Identifier: GPL-2.0-only
"""The pair's key, and the one that is to follow it. Pure.

Both hosts hear both; each speaks the following one as soon as the other hears it. So the key can
be changed on one host after the other, and no datagram is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from colo_ebpf.control.peer.keys import Purpose, derive

_NAME_BYTES = 8


def name_of(key: bytes) -> str:
    """By which both hosts know a key; it tells nothing of it."""
    return derive(key, b"", Purpose.NAME, _NAME_BYTES).hex()


@dataclass(frozen=True, slots=True)
class KeyRing:
    """What one host has. `following`: while the key is being changed."""

    current: bytes
    following: bytes | None = None

    @property
    def heard(self) -> tuple[bytes, ...]:
        """What opens."""
        return (self.current,) if self.following is None else (self.current, self.following)

    @property
    def names(self) -> list[str]:
        """Of what opens, as the peer is told."""
        return [name_of(key) for key in self.heard]

    def spoken(self, peer_hears: Sequence[str]) -> bytes:
        """What seals."""
        if self.following is not None and name_of(self.following) in peer_hears:
            return self.following
        return self.current

    def find(self, name: str) -> bytes | None:
        """The key of a name."""
        return next((key for key in self.heard if name_of(key) == name), None)
