# SPDX-License-Identifier: GPL-2.0-only
"""Keys of one purpose each, derived from the one that the two hosts share (HKDF, RFC 5869). Pure.

Each has a salt that was never there before: what was sealed with an earlier key opens with no
later one, and no two keys ever seal with the same nonce.
"""

from __future__ import annotations

import enum

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SALT_BYTES = 16


class Purpose(enum.Enum):
    """What a derived key is for: no two are ever the same."""

    HEARTBEATS = b"colo-ebpf heartbeats"
    LINK = b"colo-ebpf link"
    NAME = b"colo-ebpf name of a key"
    TUNNEL = b"colo-ebpf tunnel"


def derive(
    pair_key: bytes, salt: bytes, purpose: Purpose, length_bytes: int, *context: str
) -> bytes:
    """A key of its own, for those whom `context` names. ValueError if it would be longer than 255
    digests (8160 bytes)."""
    info = b"\0".join((purpose.value, *(one.encode() for one in context)))
    return HKDF(SHA256(), length_bytes, salt, info).derive(pair_key)
