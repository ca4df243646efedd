# SPDX-License-Identifier: GPL-2.0-only
"""Are two exports of a running pair equal, byte for byte?

Both are written to while they are read: a write reaches one side a moment before the other. So the
rule is:

- Where both sides say at one look that they read as zeroes, nothing is read.
- A sector that holds the same bytes on both sides at one look is equal.
- One that does not is looked at again, up to LOOKS times in all, after pauses of 10 ms, 20 ms, and
  so on, doubling: together 1.3 s, while a write is under way for milliseconds.
- One that was not equal at any of these looks is a difference.

So a sector that is rewritten all the time may be called different although it is not, if every look
falls into a write. A sector that stays different is never called equal.

All that is asked for and not yet read fits into the buffers of the sockets. A check that is
suspended would else leave a QEMU with answers it cannot send, and QEMU waits for those before each
checkpoint: with 8 MiB in flight none came through any more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from colo_ebpf.errors import StorageError
from colo_ebpf.storage.nbd import Connection, Extent, Reading

LOOKS = 8
CHUNK_BYTES = 64 << 10
IN_FLIGHT = 2  # chunks: 128 KiB fit into a unix socket's default buffer of 208 KiB
_FIRST_PAUSE_S = 0.01
_SECTOR_BYTES = 512
_WINDOW_BYTES = 256 << 20  # what is looked at again is looked at before going on

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of bytes."""

    offset_bytes: int
    length_bytes: int

    @property
    def end_bytes(self) -> int:
        """The first byte after it."""
        return self.offset_bytes + self.length_bytes


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found. Not `complete`: so many differences that the rest was not looked at."""

    size_bytes: int
    read_bytes: int
    zero_bytes: int  # on both sides: not read
    again_bytes: int  # looked at more than once
    differences: tuple[Range, ...]
    complete: bool
    unsettled_bytes: int = 0  # written to between all looks: neither equal nor different


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Ascending ranges, those that touch made one."""
    found: list[Range] = []
    for one in ranges:
        if found and found[-1].end_bytes == one.offset_bytes:
            last = found.pop()
            one = Range(last.offset_bytes, last.length_bytes + one.length_bytes)  # noqa: PLW2901
        found.append(one)
    return found


def unlike_sectors(
    offset_bytes: int, one: bytes | bytearray, other: bytes | bytearray
) -> Iterator[tuple[Range, bytes]]:
    """Those of a chunk at this offset that are not the same in both, with what `one` has there."""
    if one == other:
        return
    for at in range(0, len(one), _SECTOR_BYTES):
        sector = bytes(one[at : at + _SECTOR_BYTES])
        if sector != other[at : at + _SECTOR_BYTES]:
            yield Range(offset_bytes + at, len(sector)), sector


def differing(offset_bytes: int, one: bytes | bytearray, other: bytes | bytearray) -> list[Range]:
    """The same sectors, those that touch made one range."""
    return merged(place for place, _ in unlike_sectors(offset_bytes, one, other))


def to_read(one: list[Extent], other: list[Extent]) -> tuple[list[Range], int]:
    """What at least one side does not call zero, and the end of what both spoke of."""
    end = min(extents[-1].offset_bytes + extents[-1].length_bytes for extents in (one, other))
    edges = {e.offset_bytes for e in (*one, *other) if e.offset_bytes < end} | {end}
    at = sorted(edges)
    pieces = (Range(a, b - a) for a, b in pairwise(at))
    return merged(p for p in pieces if not (_zero(one, p) and _zero(other, p))), end


def _zero(extents: list[Extent], piece: Range) -> bool:
    for extent in extents:
        if extent.offset_bytes <= piece.offset_bytes < extent.offset_bytes + extent.length_bytes:
            return extent.zero
    return False


def chunks(ranges: Iterable[Range]) -> Iterator[Range]:
    """The same, in pieces of at most CHUNK_BYTES."""
    for one in ranges:
        for at in range(one.offset_bytes, one.end_bytes, CHUNK_BYTES):
            yield Range(at, min(CHUNK_BYTES, one.end_bytes - at))


class Sized(Protocol):
    """An image, or a connection to one."""

    @property
    def address(self) -> object:
        """For people."""

    @property
    def size_bytes(self) -> int:
        """Of the content."""


def common_size_bytes(local: Sized, remote: Sized) -> int:
    """Raises StorageError if the two have different sizes."""
    if local.size_bytes != remote.size_bytes:
        raise StorageError(
            f"{local.address} has {local.size_bytes} bytes, {remote.address} "
            f"{remote.size_bytes}: they are no images of one disk"
        )
    return local.size_bytes


def read_ahead(
    ranges: Iterable[Range], *sides: Connection
) -> Iterator[tuple[Range, list[bytearray]]]:
    """Chunks of at most CHUNK_BYTES, and what each side has there, read at about the same time."""
    waiting: deque[tuple[Range, list[Reading]]] = deque()

    def finish() -> tuple[Range, list[bytearray]]:
        chunk, readings = waiting.popleft()
        return chunk, [s.finish_read(one) for s, one in zip(sides, readings, strict=True)]

    for chunk in chunks(ranges):
        where = (chunk.offset_bytes, chunk.length_bytes)
        waiting.append((chunk, [side.start_read(*where) for side in sides]))
        if len(waiting) == IN_FLIGHT:
            yield finish()
    while waiting:
        yield finish()


class Comparing:
    """One comparison of two connections; `run` does it."""

    def __init__(self, local: Connection, remote: Connection, most: int) -> None:
        self._local, self._remote, self._most = local, remote, most
        self._read_bytes = self._zero_bytes = self._again_bytes = 0

    def run(self, progress: Progress = lambda done, total: None) -> Comparison:
        """Compare all of it, or until more than `most` ranges are found to differ.

        Raises StorageError if the two have different sizes.
        """
        size = common_size_bytes(self._local, self._remote)
        found: list[Range] = []
        at = 0
        while at < size and len(found) <= self._most:
            end = min(at + _WINDOW_BYTES, size)
            suspects = self._first_look(at, end, lambda done: progress(done, size))
            found = merged([*found, *self._look_again(suspects)])
            at = end
        progress(at, size)
        return Comparison(
            size_bytes=size,
            read_bytes=self._read_bytes,
            zero_bytes=self._zero_bytes,
            again_bytes=self._again_bytes,
            differences=tuple(found[: self._most]),
            complete=at == size and len(found) <= self._most,
        )

    def _first_look(self, at: int, end: int, progress: Callable[[int], None]) -> list[Range]:
        suspects: list[Range] = []
        while at < end:
            extents = [c.extents(at, end - at) for c in (self._local, self._remote)]
            ranges, spoken_of = to_read(*extents)
            read = sum(one.length_bytes for one in ranges)
            self._read_bytes += read
            self._zero_bytes += spoken_of - at - read
            for chunk, differ in self._look(ranges):
                suspects += differ
                progress(chunk.end_bytes)
            at = spoken_of
            progress(at)
        return merged(suspects)

    def _look_again(self, suspects: list[Range]) -> list[Range]:
        pause_s = _FIRST_PAUSE_S
        for _ in range(LOOKS - 1):
            if not suspects:
                break
            time.sleep(pause_s)
            pause_s *= 2
            self._again_bytes += sum(one.length_bytes for one in suspects)
            suspects = merged(one for _, differ in self._look(suspects) for one in differ)
        return suspects

    def _look(self, ranges: Iterable[Range]) -> Iterator[tuple[Range, list[Range]]]:
        """Each chunk and what differs in it."""
        for chunk, (one, other) in read_ahead(ranges, self._local, self._remote):
            yield chunk, differing(chunk.offset_bytes, one, other)


def compare(
    local: Connection, remote: Connection, most: int, progress: Progress = lambda done, total: None
) -> Comparison:
    """Compare two exports; at most `most` differing ranges are told."""
    return Comparing(local, remote, most).run(progress)
