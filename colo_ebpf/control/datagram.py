# SPDX-License-Identifier: GPL-2.0-only
"""The envelope of what daemons tell each other.

::

    "COLO" | version (1 byte) | BLAKE2b of all the rest (32 bytes) | number (8 bytes) | what is said

The code is keyed (RFC 7693). The number is outside of what is said, so that saying the same once
more costs neither side more than a look at it.
"""

from __future__ import annotations

import enum
import hashlib
import hmac

from colo_ebpf.errors import PeerError

MAGIC = b"COLO"
VERSION = 4  # of the envelope, of what is said, and of the record: both hosts read that
_HEAD = MAGIC + bytes((VERSION,))
_CODE_BYTES, _NUMBER_BYTES = 32, 8
_NUMBER_AT = len(_HEAD) + _CODE_BYTES
_SAID_AT = _NUMBER_AT + _NUMBER_BYTES


class Refusal(enum.Enum):
    """Why a datagram was not believed."""

    MALFORMED = "malformed datagrams: something else sends to the heartbeat port"
    VERSION = "another protocol version: run the same version of colo-ebpf on both hosts"
    KEY = "wrong key: the key files of the two hosts differ"
    VM = "another VM's name: [vm] name must be the same on both hosts"
    HOST = "another host's name: [peer] name must be the other host's [host] name"
    STALE = "replayed or overtaken datagrams"


class RefusedError(PeerError):
    """A datagram that was not believed, and why."""

    def __init__(self, why: Refusal, detail: str = "") -> None:
        super().__init__(why.value + (f" ({detail})" if detail else ""))
        self.why = why


class Seal:
    """Of one key."""

    def __init__(self, key: bytes) -> None:
        secret = hashlib.blake2b(key).digest()  # BLAKE2b takes no longer ones
        self._begun = hashlib.blake2b(_HEAD, key=secret, digest_size=_CODE_BYTES)

    def close(self, number: int, said: bytes) -> bytes:
        """The datagram."""
        rest = number.to_bytes(_NUMBER_BYTES) + said
        return _HEAD + self._code(rest) + rest

    def open(self, datagram: bytes) -> tuple[int, bytes]:
        """Its number and what it says; raises RefusedError."""
        if len(datagram) < _SAID_AT or not datagram.startswith(MAGIC):
            raise RefusedError(Refusal.MALFORMED)
        if datagram[4] != VERSION:
            raise RefusedError(Refusal.VERSION, f"theirs {datagram[4]}, ours {VERSION}")
        code = self._code(datagram[_NUMBER_AT:])
        if not hmac.compare_digest(code, datagram[len(_HEAD) : _NUMBER_AT]):
            raise RefusedError(Refusal.KEY)
        return int.from_bytes(datagram[_NUMBER_AT:_SAID_AT]), datagram[_SAID_AT:]

    def _code(self, rest: bytes) -> bytes:
        code = self._begun.copy()
        code.update(rest)
        return code.digest()
