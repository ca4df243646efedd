# SPDX-License-Identifier: GPL-2.0-only
"""Digests of a raw image, piece by piece: what the peer need not send again.

They stand in a file that the peer reads, as an NBD export, while it is still being filled:

| offset | bytes | what |
|---|---|---|
| 0 | 8 | `MAGIC` |
| 8 | 1 | `State` |
| 16 | 16 | a random key: nobody can prepare two pieces with one digest |
| 4096 | 16 each | SHA-256 of key and piece, cut; zeroes: not made yet |

They are good for one attempt: while it goes on pieces are written over, and no digest follows. So
the peer takes them before it writes its first byte, whichever way it copies.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from colo_ebpf.directories import make_passable
from colo_ebpf.errors import StorageError
from colo_ebpf.storage import image
from colo_ebpf.storage.nbd import Connection, ExportAddress

MAGIC = b"COLODIG1"
HEAD_BYTES, PIECE_BYTES, DIGEST_BYTES = 4096, 64 << 10, 16
NOT_MADE = bytes(DIGEST_BYTES)
_HEAD = struct.Struct("<8sB7x16s")
_STATE_AT = 8
_SECTOR_BYTES = 512  # the least that is written to an export
_BATCH = 16  # pieces whose digests are written at once
_ZEROES = bytes(PIECE_BYTES)


class State(IntEnum):
    """Of the file; the peer changes it once."""

    FRESH = 0
    FOLLOWED = 1  # the peer compares with them
    REFUSED = 2  # the peer copies in another way


class RawImage:
    """A raw image, file or block device, read beside a QEMU that has it open."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Raises StorageError."""
        self.address, self._fd = f"image {path}", file.fileno()
        try:
            self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as e:
            raise StorageError(f"{self.address}: {e.strerror}") from e
        self._data = (0, 0)  # where the next stretch that is no hole begins and ends

    def piece(self, number: int) -> bytes:
        """Ask for them in their order. Raises StorageError."""
        at = number * PIECE_BYTES
        length = min(PIECE_BYTES, self.size_bytes - at)
        try:
            if self._is_hole(at, length):
                return _ZEROES[:length]
            data = os.pread(self._fd, length, at)
            os.posix_fadvise(self._fd, at, length, os.POSIX_FADV_DONTNEED)
        except OSError as e:
            raise StorageError(f"{self.address}: at {at}: {e.strerror}") from e
        if len(data) != length:
            raise StorageError(f"{self.address}: ends at {at + len(data)}, it was longer")
        return data

    def _is_hole(self, at: int, length: int) -> bool:
        if at >= self._data[1]:
            self._data = self._next_data(at)
        return at + length <= self._data[0]

    def _next_data(self, at: int) -> tuple[int, int]:
        try:
            begin = os.lseek(self._fd, at, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # nothing but a hole follows
                return self.size_bytes, self.size_bytes
            raise
        return begin, os.lseek(self._fd, begin, os.SEEK_HOLE)


@contextmanager
def raw_image(path: Path) -> Iterator[RawImage]:
    """It is closed at the end. Raises StorageError."""
    with image.opened(path, readonly=True) as file:
        yield RawImage(path, file)


class Digester:
    """Makes the digests of one key."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hashlib.sha256(key)
        self._zeroes = self._of(_ZEROES)

    def of(self, piece: bytes) -> bytes:
        """Of a piece, DIGEST_BYTES of it."""
        return self._zeroes if piece is _ZEROES else self._of(piece)

    def _of(self, piece: bytes) -> bytes:
        found = self._keyed.copy()
        found.update(piece)
        return found.digest()[:DIGEST_BYTES]


def pieces_of(size_bytes: int) -> int:
    """So many an image of this size has; the last one may be shorter."""
    return -(-size_bytes // PIECE_BYTES)


# -- the host whose image it is --------------------------------------------------------------


def prepare(file: Path, of: Path) -> None:
    """An empty file of digests of this image. Raises StorageError."""
    with raw_image(of) as raw:
        count = pieces_of(raw.size_bytes)
    size = HEAD_BYTES + -(-count * DIGEST_BYTES // HEAD_BYTES) * HEAD_BYTES
    try:
        make_passable(file.parent)
        file.unlink(missing_ok=True)
        file.touch(mode=0o600)
        with file.open("r+b") as made:
            made.write(_HEAD.pack(MAGIC, State.FRESH, secrets.token_bytes(16)))
            made.truncate(size)
    except OSError as e:
        raise StorageError(f"digests {file}: {e.strerror}") from e


def make(file: Path, of: Path, stopped: threading.Event) -> bool:
    """Fill the file. False: it was stopped, or the peer refused them. Raises StorageError."""
    with raw_image(of) as raw:
        try:
            return _fill(file, raw, stopped)
        except OSError as e:
            raise StorageError(f"digests {file}: {e.strerror}") from e


def _fill(file: Path, raw: RawImage, stopped: threading.Event) -> bool:
    count = pieces_of(raw.size_bytes)
    with file.open("r+b", buffering=0) as made:
        digester = Digester(_HEAD.unpack(made.read(_HEAD.size))[2])
        for first in range(0, count, _BATCH):
            if stopped.is_set() or os.pread(made.fileno(), 1, _STATE_AT)[0] == State.REFUSED:
                return False
            numbers = range(first, min(first + _BATCH, count))
            digests = b"".join(digester.of(raw.piece(number)) for number in numbers)
            os.pwrite(made.fileno(), digests, HEAD_BYTES + first * DIGEST_BYTES)
    return True


# -- the host that compares with them --------------------------------------------------------


def take(exports: Iterable[ExportAddress], wanted: bool, timeout_ms: int) -> bool:
    """Nobody can take them after this. Are they all there, fresh and wanted?

    Raises StorageError where there are none.
    """
    usable = wanted
    state = State.FOLLOWED if wanted else State.REFUSED
    for address in exports:
        with Connection(address, timeout_ms) as connection:
            sector = _head(connection)
            magic, before, _ = _HEAD.unpack_from(sector)
            if magic != MAGIC:
                raise StorageError(f"{address}: holds no digests")
            usable = usable and before == State.FRESH
            sector[_STATE_AT] = state
            connection.start_write(0, sector)
            connection.settle(0)
    return usable


def key_in(connection: Connection) -> bytes:
    """Of the digests that are exported there."""
    return bytes(_HEAD.unpack_from(_head(connection))[2])


def _head(connection: Connection) -> bytearray:
    return connection.finish_read(connection.start_read(0, _SECTOR_BYTES))
