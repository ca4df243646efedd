# SPDX-License-Identifier: GPL-2.0-only
"""Carry those pieces of a raw image to the peer's that have another digest there.

The digests are made by the peer's daemon meanwhile (`digests.py`): both hosts read their images at
the same time, and what is alike is not sent. Whoever writes to the image meanwhile marks that
elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.errors import NoDigestsError
from colo_ebpf.storage.carry import WRITES, Pace
from colo_ebpf.storage.digests import (
    DIGEST_BYTES,
    HEAD_BYTES,
    NOT_MADE,
    PIECE_BYTES,
    Digester,
    RawImage,
    key_in,
    pieces_of,
    raw_image,
)
from colo_ebpf.storage.nbd import Connection, ExportAddress
from colo_ebpf.storage.verify import Progress, common_size_bytes

_WINDOW = 4096  # digests that are read at once: 64 KiB
_LOOK_S = 0.05  # nobody tells this host when the peer has made more


@dataclass(frozen=True, slots=True)
class UnlikeWay:
    """One disk: the image here, the digests of the peer's, and the peer's export."""

    image: Path
    digests: ExportAddress
    there: ExportAddress


def carry_unlike(
    ways: Iterable[UnlikeWay],
    pace: Pace,
    timeout_ms: int,
    made_timeout_ms: int,
    progress: Progress = lambda done, total: None,
) -> int:
    """So many bytes were carried; durable at the end. `progress` counts what was compared.

    Raises NoDigestsError if no digest is made for `made_timeout_ms`, else StorageError.
    """
    with ExitStack() as stack:
        disks = [
            _Disk(
                stack.enter_context(raw_image(way.image)),
                stack.enter_context(Connection(way.digests, timeout_ms, stopped=pace.stopped)),
                stack.enter_context(Connection(way.there, timeout_ms, stopped=pace.stopped)),
                pace,
            )
            for way in ways
        ]
        total = sum(disk.size_bytes for disk in disks)
        done = carried = 0
        progress(done, total)
        for disk in disks:
            for compared, unlike in disk.carry(made_timeout_ms / 1000):
                done += compared
                carried += unlike
                progress(done, total)
    return carried


class _Disk:
    def __init__(self, image: RawImage, digests: Connection, there: Connection, pace: Pace) -> None:
        self._image, self._digests, self._there, self._pace = image, digests, there, pace
        self.size_bytes = common_size_bytes(image, there)

    def carry(self, made_timeout_s: float) -> Iterator[tuple[int, int]]:
        """Bytes that were compared, and how many of these were sent."""
        digester = Digester(key_in(self._digests))
        for number, theirs in enumerate(self._theirs(made_timeout_s)):
            piece = self._image.piece(number)
            unlike = len(piece) if digester.of(piece) != theirs else 0
            self._pace.spend(unlike)
            if unlike:
                self._there.start_write(number * PIECE_BYTES, bytearray(piece))
                self._there.settle(WRITES)
            yield len(piece), unlike
        self._there.settle(0)
        self._there.flush()

    def _theirs(self, made_timeout_s: float) -> Iterator[bytes]:
        """Each digest in its order, once it is made."""
        number, count = 0, pieces_of(self.size_bytes)
        deadline = time.monotonic() + made_timeout_s
        while number < count:
            made = self._look(number, min(_WINDOW, count - number))
            yield from made
            number += len(made)
            if made:
                deadline = time.monotonic() + made_timeout_s
            elif time.monotonic() > deadline:
                where = f"{self._digests.address}: at {number} of {count}"
                raise NoDigestsError(f"{where}: none was made for {made_timeout_s:.0f} s")
            else:
                self._pace.pause(_LOOK_S)

    def _look(self, number: int, most: int) -> list[bytes]:
        at, length = HEAD_BYTES + number * DIGEST_BYTES, most * DIGEST_BYTES
        raw = bytes(self._digests.finish_read(self._digests.start_read(at, length)))
        made = []
        for begin in range(0, length, DIGEST_BYTES):
            one = raw[begin : begin + DIGEST_BYTES]
            if one == NOT_MADE:
                break
            made.append(one)
        return made
