# SPDX-License-Identifier: GPL-2.0-only
"""The envelope of what daemons tell each other.

::

    "COLO" | version (1 byte) | salt (16 bytes) | number (8 bytes) | what is said, sealed

AES-256-GCM seals it (SP 800-38D): nobody else can read it, and what is before it is authenticated,
too. Each run of a daemon draws a salt, from which its key follows, and gives no number twice: so no
nonce is ever used twice. The number is outside of what is said, so that saying the same once more
costs neither side more than a look at it.
"""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from colo_ebpf.control.peer.keys import SALT_BYTES, Purpose, derive
from colo_ebpf.errors import Refusal, RefusedError

MAGIC = b"COLO"
VERSION = 8  # of the envelope, of what is said, and of the record: both hosts read that
_HEAD = MAGIC + bytes((VERSION,))
_KEY_BYTES, _NUMBER_BYTES, _TAG_BYTES, _NONCE_BYTES = 32, 8, 16, 12
_NUMBER_AT = len(_HEAD) + SALT_BYTES
_SAID_AT = _NUMBER_AT + _NUMBER_BYTES
_RUNS_KEPT = 4  # of a daemon that restarts while datagrams of the run before are under way


class Run:
    """The seal of one run of a daemon, or of its part with one key."""

    def __init__(self, pair_key: bytes, salt: bytes) -> None:
        self.pair_key = pair_key
        self._head = _HEAD + salt
        self._cipher = AESGCM(derive(pair_key, salt, Purpose.HEARTBEATS, _KEY_BYTES))

    @classmethod
    def begin(cls, pair_key: bytes) -> Run:
        """One that there never was."""
        return cls(pair_key, secrets.token_bytes(SALT_BYTES))

    def close(self, number: int, said: bytes) -> bytes:
        """The datagram. A number says one thing only."""
        head = self._head + number.to_bytes(_NUMBER_BYTES)
        return head + self._cipher.encrypt(number.to_bytes(_NONCE_BYTES), said, head)

    def open(self, datagram: bytes) -> tuple[int, bytes]:
        """Its number and what it says. Raises InvalidTag."""
        head, number = datagram[:_SAID_AT], int.from_bytes(datagram[_NUMBER_AT:_SAID_AT])
        return number, self._cipher.decrypt(
            number.to_bytes(_NONCE_BYTES), datagram[_SAID_AT:], head
        )


class Seal:
    """Of these keys: each opens, the first seals unless another one is chosen."""

    def __init__(self, *keys: bytes) -> None:
        self.keys = keys
        self._runs: dict[bytes, Run] = {}  # of the peer, the newest last

    def hears(self, *keys: bytes) -> None:
        """These open from now on, and no others."""
        self.keys = keys
        self._runs = {salt: run for salt, run in self._runs.items() if run.pair_key in keys}

    def begin(self) -> Run:
        """For a run of this daemon."""
        return Run.begin(self.keys[0])

    def open(self, datagram: bytes) -> tuple[Run, int, bytes]:
        """Whose it is, its number and what it says; raises RefusedError."""
        if len(datagram) < _SAID_AT + _TAG_BYTES or not datagram.startswith(MAGIC):
            raise RefusedError(Refusal.MALFORMED)
        if datagram[4] != VERSION:
            raise RefusedError(Refusal.VERSION, f"theirs {datagram[4]}, ours {VERSION}")
        salt = datagram[len(_HEAD) : _NUMBER_AT]
        known = self._runs.get(salt)
        for run in [known] if known else [Run(key, salt) for key in self.keys]:
            try:
                number, said = run.open(datagram)
            except InvalidTag:
                continue
            self._keep(salt, run)
            return run, number, said
        raise RefusedError(Refusal.KEY)

    def _keep(self, salt: bytes, run: Run) -> None:
        """Only a run that was authentic, so that nobody else can crowd it out."""
        if salt not in self._runs and len(self._runs) == _RUNS_KEPT:
            del self._runs[next(iter(self._runs))]
        self._runs[salt] = run
