# SPDX-License-Identifier: GPL-2.0-only
"""Carry what a dirty bitmap marks from one export to another.

The first may be written to meanwhile: whoever writes marks that elsewhere. What a suspended daemon
has asked for and not read fits into the buffers of the sockets, as in `verify.py`: QEMU would wait
for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from colo_ebpf.errors import StorageError
from colo_ebpf.storage.nbd import Connection, ExportAddress
from colo_ebpf.storage.verify import Progress, Range, chunks, common_size_bytes, read_ahead

WRITES = 16  # pieces on their way to the peer
_BITMAP = "qemu:dirty-bitmap:"  # docs/interop/nbd.txt of QEMU
_DIRTY = 1


class Pace:
    """So many bytes a second at most (0: as fast as it goes), until it is stopped."""

    def __init__(self, rate_bytes: int, stopped: threading.Event) -> None:
        self._rate_bytes, self.stopped = rate_bytes, stopped
        self._free_at_s = 0.0  # what was spent so far has gone by then

    def spend(self, count: int) -> None:
        """Wait until they may go. StorageError once it is stopped."""
        if not self._rate_bytes:
            self.pause(0.0)
            return
        now_s = time.monotonic()
        self.pause(max(0.0, self._free_at_s - now_s))
        self._free_at_s = max(self._free_at_s, now_s) + count / self._rate_bytes

    def pause(self, seconds: float) -> None:
        """StorageError once it is stopped."""
        if self.stopped.wait(seconds) if seconds else self.stopped.is_set():
            raise StorageError("the copy of what has changed was given up")


def carry(
    ways: Iterable[tuple[ExportAddress, ExportAddress]],
    bitmap: str,
    pace: Pace,
    timeout_ms: int,
    progress: Progress = lambda done, total: None,
) -> None:
    """From and to, disk by disk; durable at the end. Raises StorageError."""
    context = _BITMAP + bitmap
    with ExitStack() as stack:
        pairs = [
            (
                stack.enter_context(Connection(here, timeout_ms, context, pace.stopped)),
                stack.enter_context(Connection(there, timeout_ms, stopped=pace.stopped)),
            )
            for here, there in ways
        ]
        marked = [list(_marked(local, remote)) for local, remote in pairs]
        total = sum(one.length_bytes for ranges in marked for one in ranges)
        done = 0
        progress(done, total)
        for (local, remote), ranges in zip(pairs, marked, strict=True):
            for count in _carried(local, remote, ranges, pace):
                done += count
                progress(done, total)
            remote.settle(0)
            remote.flush()


def _marked(local: Connection, remote: Connection) -> Iterator[Range]:
    at, size = 0, common_size_bytes(local, remote)
    while at < size:
        for extent in local.flags(at, size - at):
            if extent.flags & _DIRTY:
                yield Range(extent.offset_bytes, extent.length_bytes)
            at = extent.offset_bytes + extent.length_bytes


def _carried(
    local: Connection, remote: Connection, ranges: Iterable[Range], pace: Pace
) -> Iterator[int]:
    """Bytes that are on their way, piece by piece."""
    for piece, (data,) in read_ahead(_paced(ranges, pace), local):
        remote.start_write(piece.offset_bytes, data)
        remote.settle(WRITES)
        yield piece.length_bytes


def _paced(ranges: Iterable[Range], pace: Pace) -> Iterator[Range]:
    for piece in chunks(ranges):
        pace.spend(piece.length_bytes)
        yield piece
