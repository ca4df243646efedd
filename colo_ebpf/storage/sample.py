# SPDX-License-Identifier: GPL-2.0-only
"""Do both hosts read the same from the disk that they share? Some of it is compared, drawn at
random.

The primary's export has the disk as it is. The secondary's has it as it was at the last checkpoint,
and keeps what is read from it until the next one: so not all of a disk is read. The rule is:

- What both sides say reads as zeroes is not read: another place is drawn.
- A sector that holds the same bytes on both sides at one look is equal.
- One that does not is looked at again, up to LOOKS times in all, after a checkpoint each time.
- One that is here as it was at the look before that checkpoint, and on the secondary is not, is a
  difference: a host reads something old, or another disk.
- One that is another here at each look is written to all the time: neither equal nor different.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

from colo_ebpf.storage.nbd import Connection
from colo_ebpf.storage.verify import (
    CHUNK_BYTES,
    LOOKS,
    Comparison,
    Progress,
    Range,
    common_size_bytes,
    merged,
    read_ahead,
    to_read,
    unlike_sectors,
)

_DRAWN = 4096  # places at most: of a disk that is nearly empty most read as zeroes


class Sampling:
    """One comparison of two connections; `run` does it. `checkpoint` takes one and returns when the
    secondary has loaded it."""

    def __init__(
        self,
        local: Connection,
        remote: Connection,
        checkpoint: Callable[[], object],
        draw: random.Random,
    ) -> None:
        self._local, self._remote = local, remote
        self._checkpoint, self._draw = checkpoint, draw
        self._read_bytes = self._zero_bytes = self._again_bytes = 0

    def run(
        self, wanted_bytes: int, most: int, progress: Progress = lambda done, total: None
    ) -> Comparison:
        """Read so much, or what there is, and tell at most `most` differing ranges.

        Raises StorageError if the two have different sizes.
        """
        size = common_size_bytes(self._local, self._remote)
        suspects: dict[int, bytes] = {}  # by offset: what is here
        for chunk, (here, there) in self._read(self._drawn(size, wanted_bytes)):
            differ = unlike_sectors(chunk.offset_bytes, here, there)
            suspects.update((place.offset_bytes, sector) for place, sector in differ)
            progress(min(self._read_bytes, wanted_bytes), wanted_bytes)
        found: list[Range] = []
        for _ in range(LOOKS - 1):
            if not suspects or len(found) > most:
                break
            self._checkpoint()
            suspects, wrong = self._look_again(suspects)
            found = merged(sorted([*found, *wrong], key=lambda one: one.offset_bytes))
        return Comparison(
            size_bytes=size,
            read_bytes=self._read_bytes,
            zero_bytes=self._zero_bytes,
            again_bytes=self._again_bytes,
            differences=tuple(found[:most]),
            complete=len(found) <= most,
            unsettled_bytes=sum(map(len, suspects.values())),
        )

    def _drawn(self, size_bytes: int, wanted_bytes: int) -> Iterator[Range]:
        count = -(-size_bytes // CHUNK_BYTES)
        for number in self._draw.sample(range(count), min(count, _DRAWN)):
            at = number * CHUNK_BYTES
            length = min(CHUNK_BYTES, size_bytes - at)
            extents = [c.extents(at, length) for c in (self._local, self._remote)]
            if not to_read(*extents)[0]:
                self._zero_bytes += length
                continue
            self._read_bytes += length
            yield Range(at, length)
            if self._read_bytes >= wanted_bytes:
                return

    def _read(self, ranges: Iterable[Range]) -> Iterator[tuple[Range, list[bytearray]]]:
        return read_ahead(ranges, self._local, self._remote)

    def _look_again(self, suspects: dict[int, bytes]) -> tuple[dict[int, bytes], list[Range]]:
        """What is still unlike because it is written to, and what differs."""
        unlike: dict[int, bytes] = {}
        wrong = []
        ranges = merged(Range(at, len(suspects[at])) for at in sorted(suspects))
        self._again_bytes += sum(one.length_bytes for one in ranges)
        for chunk, (here, there) in self._read(ranges):
            for place, sector in unlike_sectors(chunk.offset_bytes, here, there):
                if sector == suspects[place.offset_bytes]:
                    wrong.append(place)
                else:
                    unlike[place.offset_bytes] = sector
        return unlike, wrong
