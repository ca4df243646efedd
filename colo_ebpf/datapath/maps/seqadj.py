# SPDX-License-Identifier: GPL-2.0-only
"""Sequence offsets that outlive a takeover: kept, handed on, forgotten.

`bpf/include/colo_seqadj.h` says what they are. An entry, as hosts hand it to each other: the 16
bytes of the flow's key, then the deltas of its sequence numbers and of its timestamps, in network
order.
"""

from __future__ import annotations

import struct

from colo_ebpf.clock import boot_ns
from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.syscalls import RawMap
from colo_ebpf.errors import DatapathError

_DELTAS = struct.Struct("!II")
_NONE = (0, 0)
Deltas = tuple[int, int]  # sequence numbers, timestamps


class LastingOffsets:
    """The maps `colo_offs` and `colo_last` of one VM."""

    def __init__(self, offsets: RawMap, lasting: RawMap) -> None:
        self._offsets, self._lasting = offsets, lasting

    def fold(self, epoch: int) -> None:
        """Add what `epoch` has taught to the lasting offsets. Reads a whole table: use a thread."""
        for key in list(self._offsets.keys()) if epoch else ():
            raw = self._offsets.get(key)
            taught = _taught(raw, epoch) if raw else _NONE
            if taught != _NONE:
                known = self._deltas(key)
                self._put(key, (known[0] + taught[0], known[1] + taught[1]))

    def entries(self) -> list[bytes]:
        """All of them, to be handed on."""
        found = []
        for key in list(self._lasting.keys()):
            deltas = self._deltas(key)
            if deltas != _NONE:
                found.append(key + _DELTAS.pack(*deltas))
        return found

    def learn(self, entries: list[bytes]) -> None:
        """Take over entries of the other host; DatapathError if one is malformed."""
        size = self._lasting.info.key_bytes
        for entry in entries:
            if len(entry) != size + _DELTAS.size:
                raise DatapathError(f"a lasting offset of {len(entry)} bytes was handed over")
            self._put(entry[:size], _DELTAS.unpack(entry[size:]))

    def _deltas(self, key: bytes) -> Deltas:
        raw = self._lasting.get(key)
        if raw is None:
            return _NONE
        last = abi.Lasting.from_buffer_copy(raw)
        return int(last.delta), int(last.ts_delta)

    def _put(self, key: bytes, deltas: Deltas) -> None:
        seq, ts = (delta & 0xFFFFFFFF for delta in deltas)
        self._lasting.set(key, bytes(abi.Lasting(seen_ns=boot_ns(), delta=seq, ts_delta=ts)))


def _taught(raw: bytes, epoch: int) -> Deltas:
    slot = abi.Off.from_buffer_copy(raw).slot[epoch & 1]
    if slot.epoch != epoch:
        return _NONE
    seq = int(slot.delta) if slot.flags & abi.OffFlag.DELTA else 0
    return seq, int(slot.ts_delta) if slot.flags & abi.OffFlag.TS_DELTA else 0
