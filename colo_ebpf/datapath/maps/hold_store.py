# SPDX-License-Identifier: GPL-2.0-only
"""The hold store as user space sees it: mapped memory, so that a look costs no call.

The daemon asks several times a second how old the oldest held frame is, in the thread that also
times the checkpoints: to copy the whole table for that took longer than all else it does.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Iterator
from itertools import islice

from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.syscalls import mapped

_WORDS = ctypes.sizeof(abi.Slot) // 8
_STATE, _AT = abi.Slot.state.offset // 8, abi.Slot.at_ns.offset // 8
_KIND, _KIND_SHIFT = divmod(abi.Slot.kind.offset, 8)
_LEN, _LEN_SHIFT = divmod(abi.Slot.len.offset, 8)
_BYTES, _BYTES_SHIFT = divmod(abi.Slot.bytes.offset, 8)
_HALF = 0xFFFFFFFF
_DATA = (abi.SlotKind.DGRAM, abi.SlotKind.PARKED)
_BY_TIMER = (abi.SlotKind.ACK, abi.SlotKind.RESET)
_IN_USE = re.compile(rb"[^\0]+")  # FREE is 0


class HeldSlots:
    """What `colo_hold` holds now."""

    def __init__(self, fd: int) -> None:
        self._words = mapped(fd)
        self._states = self._words.cast("B")[8 * _STATE :: 8 * _WORDS]  # little-endian: enough

    def close(self) -> None:
        """Let go of it."""
        self._states.release()
        self._words.release()

    def _taken(self) -> Iterator[int]:
        """Where the slots begin that hold a frame of the primary's, as words."""
        words = self._words
        for match in _IN_USE.finditer(self._states.tobytes()):
            for at in range(match.start() * _WORDS, match.end() * _WORDS, _WORDS):
                kind = words[at + _KIND] >> 8 * _KIND_SHIFT & _HALF
                if kind != abi.SlotKind.SAID:
                    yield at

    def oldest_ns(self) -> tuple[int | None, int | None, int | None]:
        """Boot time the oldest frame came that the SVM has to produce, the oldest of those in which
        the guest says something, and the oldest that comes by a timer or by the PVM; None: there is
        none of the kind."""
        words = self._words
        answers: list[int] = []
        data: list[int] = []
        timed: list[int] = []
        for at in self._taken():
            if words[at + _STATE] != abi.SlotState.HELD:
                continue
            kind = words[at + _KIND] >> 8 * _KIND_SHIFT & _HALF
            (timed if kind in _BY_TIMER else answers).append(words[at + _AT])
            if kind in _DATA or words[at + _BYTES] >> 8 * _BYTES_SHIFT & _HALF:
                data.append(words[at + _AT])
        first = (min(times, default=None) for times in (answers, data, timed))
        return next(first), next(first), next(first)

    def ages(self, most: int) -> tuple[int, int]:
        """Of up to so many frames: how many they are, and the sum of the boot times they came."""
        came = [self._words[at + _AT] for at in islice(self._taken(), most)]
        return len(came), sum(came)

    def _oldest_ns(self, taken: Iterable[int]) -> int | None:
        words = self._words
        held = (words[at + _AT] for at in taken if words[at + _STATE] == abi.SlotState.HELD)
        return min(held, default=None)

    def report(self) -> tuple[int, int, int | None]:
        """Frames, their bytes, and the same."""
        words, taken = self._words, list(self._taken())
        total = sum(words[at + _LEN] >> 8 * _LEN_SHIFT & _HALF for at in taken)
        return len(taken), total, self._oldest_ns(taken)
