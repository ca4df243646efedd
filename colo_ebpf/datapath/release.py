# SPDX-License-Identifier: GPL-2.0-only
"""Lets held frames go that a checkpoint, or going solo, has freed."""

from __future__ import annotations

import struct
from collections.abc import Callable

from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.abi import LiveWord
from colo_ebpf.datapath.bpf.syscalls import TestRun, test_run
from colo_ebpf.model import FlushReport

_ROUNDS = 256  # times round the ring; a frame may wait for the one before it
_IDLE_ROUNDS = 8  # without a frame: another CPU holds on to what is left


class Release:
    """Runs `colo_flush` over the hold store, from its oldest frames on."""

    def __init__(self, program: int, slots: int, live: Callable[[LiveWord], int]) -> None:
        self._program, self._slots, self._live = program, slots, live

    def flush(self) -> FlushReport:
        """Emit what may leave now; see colo_flush in compare.c."""
        emitted = left = idle = 0
        for _ in range(_ROUNDS):
            if not self._live(LiveWord.HELD):
                return FlushReport(emitted, 0)
            left, before = 0, emitted
            for slot in self._oldest_first():
                run = self._run(slot, said=False)
                emitted += run.retval & 0xFFFF
                left += run.retval >> 16
            if not left:
                break
            idle = idle + 1 if emitted == before else 0
            if idle == _IDLE_ROUNDS:
                break
        return FlushReport(emitted, left)

    def _oldest_first(self) -> list[int]:
        """A slot of each part of the store, where its oldest frames begin; see colo_hold.h."""
        head, slots = self._live(LiveWord.HOLD_HEAD), self._slots
        ring = [(head + start) % slots for start in range(0, slots, abi.HOLD_PART)]
        return sorted(ring, key=lambda slot: slot < slots - abi.HOLD_PART)  # the last part first

    def repeat(self) -> int:
        """Send what the VM said last as a secondary; see colo_replay.h. Returns how many frames."""
        return self._run(0, said=True).retval & 0xFFFF

    def _run(self, slot: int, *, said: bool) -> TestRun:
        """Over the slot's part of the store."""
        frame = struct.pack("=II", slot, said).ljust(12, b"\0") + b"\x08\x00"
        return test_run(self._program, frame.ljust(64, b"\0"), abi.HOLD_PART // abi.FLUSH_SLOTS)
