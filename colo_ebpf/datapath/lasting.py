# SPDX-License-Identifier: GPL-2.0-only
"""Sequence offsets that outlive a takeover: kept, handed on, forgotten.

`bpf/include/colo_rewrite.h` says what they are. An entry, as hosts hand it to each other: the 16
bytes of the flow's key and its delta in network order.
"""

from __future__ import annotations

import struct
import time

from colo_ebpf.datapath import abi
from colo_ebpf.datapath.sysbpf import RawMap
from colo_ebpf.errors import DatapathError

_DELTA = struct.Struct("!I")


class LastingOffsets:
    """The maps `colo_offs` and `colo_last` of one VM."""

    def __init__(self, offsets: RawMap, lasting: RawMap) -> None:
        self._offsets, self._lasting = offsets, lasting

    def fold(self, epoch: int) -> None:
        """Add what `epoch` has taught to the lasting offsets. Reads a whole table: use a thread."""
        for key in list(self._offsets.keys()) if epoch else ():
            raw = self._offsets.get(key)
            delta = _taught(raw, epoch) if raw else 0
            if delta:
                self._put(key, self._delta(key) + delta)

    def entries(self) -> list[bytes]:
        """All of them, to be handed on."""
        found = []
        for key in list(self._lasting.keys()):
            delta = self._delta(key)
            if delta:
                found.append(key + _DELTA.pack(delta))
        return found

    def learn(self, entries: list[bytes]) -> None:
        """Take over entries of the other host; DatapathError if one is malformed."""
        size = self._lasting.info.key_bytes
        for entry in entries:
            if len(entry) != size + _DELTA.size:
                raise DatapathError(f"a lasting offset of {len(entry)} bytes was handed over")
            self._put(entry[:size], _DELTA.unpack(entry[size:])[0])

    def forget(self) -> None:
        """A fresh VM: no connection is left."""
        for key in list(self._lasting.keys()):
            self._lasting.delete(key)

    def _delta(self, key: bytes) -> int:
        raw = self._lasting.get(key)
        return int(abi.Lasting.from_buffer_copy(raw).delta) if raw else 0

    def _put(self, key: bytes, delta: int) -> None:
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._lasting.set(key, bytes(abi.Lasting(seen_ns=now_ns, delta=delta & 0xFFFFFFFF)))


def _taught(raw: bytes, epoch: int) -> int:
    slot = abi.Off.from_buffer_copy(raw).slot[epoch & 1]
    taught = slot.epoch == epoch and slot.flags & abi.OffFlag.DELTA
    return int(slot.delta) if taught else 0
