# SPDX-License-Identifier: GPL-2.0-only
"""Lasting offsets of connections long forgotten leave their table, a few entries at a time.

The other tables need no daemon for that: `bpf/include/colo_table.h`, `colo_seqadj.h`.
"""

from __future__ import annotations

from collections.abc import Callable

from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.syscalls import RawMap

FORGOTTEN_NS = 5 * 86_400_000_000_000  # what connection tracking gives an idle connection
_PER_STEP = 24
REST_NS = 10_000_000_000  # between walks: the end of an empty table is behind all its buckets


def lasting_ended(raw: bytes, now_ns: int) -> bool:
    """May this value of `colo_last` go? A SYN on its tuple takes it out at once."""
    last = abi.Lasting.from_buffer_copy(raw)
    return now_ns - int(last.seen_ns) > FORGOTTEN_NS


class Reaper:
    """Walks one table round and round."""

    def __init__(self, table: RawMap) -> None:
        self._table = table
        self._key: bytes | None = None
        self._begin_ns = 0  # no walk before

    @property
    def due_ns(self) -> int:
        """When the next step is: in the middle of a walk at once."""
        return 0 if self._key is not None else self._begin_ns

    def step(self, now_ns: int, ended: Callable[[bytes], bool]) -> int:
        """Look at the next entries. Returns how many went."""
        gone = 0
        for _ in range(_PER_STEP):
            key, self._key = self._key, self._table.next_key(self._key)
            if key is not None:
                gone += self._look(key, ended)
            if self._key is None:
                self._begin_ns = now_ns + REST_NS
                break
        return gone

    def _look(self, key: bytes, ended: Callable[[bytes], bool]) -> int:
        """The key after it is known already: taking it out does not end the walk."""
        value = self._table.get(key)
        if value is None or not ended(value):
            return 0
        self._table.delete(key)
        return 1
