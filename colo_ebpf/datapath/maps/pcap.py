# SPDX-License-Identifier: GPL-2.0-only
"""Held frames and what became of their comparison, as a pcapng file for Wireshark.

Reads the pinned maps only: it needs no daemon, and disturbs none. A frame that is held for a
shorter time than between two looks is missed.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pcapng
from pcapng.blocks import EnhancedPacket, InterfaceDescription, SectionHeader

from colo_ebpf.clock import boot_ns
from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.syscalls import RawMap, obj_get
from colo_ebpf.datapath.maps.decode import mismatch_rows
from colo_ebpf.datapath.maps.dump import held_slots, slot_flow
from colo_ebpf.model import PlaneEvent

_WITHOUT_FRAME = (abi.SlotKind.PARKED, abi.SlotKind.RESET)
_ETHERNET = 1  # LINKTYPE_ETHERNET
_NANOSECONDS = bytes([9])  # if_tsresol: 10^-9


@dataclass(frozen=True, slots=True)
class HeldFrame:
    """A frame of the hold store, and why it is there."""

    slot: int
    at_ns: int
    data: bytes
    comment: str


class HoldStore:
    """The hold store of one VM. Raises DatapathError if it has no pinned maps."""

    def __init__(self, pins: Path) -> None:
        names = ("colo_hold", "colo_frames", "colo_mism")
        self._slots, self._frames, self._mismatches = (
            RawMap(obj_get(str(pins / name))) for name in names
        )

    def close(self) -> None:
        """Give the maps back."""
        for one in (self._slots, self._frames, self._mismatches):
            os.close(one.fd)

    def frames(self) -> list[HeldFrame]:
        """What is held now, oldest first."""
        slots = held_slots(self._slots)
        events = mismatch_rows(self._mismatches.all())
        found = (self._frame(index, slot, events) for index, slot in slots)
        return [frame for frame in found if frame]

    def _frame(self, index: int, slot: abi.Slot, events: list[PlaneEvent]) -> HeldFrame | None:
        raw = self._frames.get(struct.pack("=I", index))
        if raw is None or slot.kind in _WITHOUT_FRAME or slot.len > len(raw):
            return None
        return HeldFrame(index, int(slot.at_ns), raw[: slot.len], _comment(slot, events))


def _comment(slot: abi.Slot, events: list[PlaneEvent]) -> str:
    flow = slot_flow(slot)
    said = f"held ({abi.SlotKind(slot.kind).name.lower()}) in epoch {slot.epoch}: {flow}"
    if slot.digest:
        said += f", digest {slot.digest:016x}"
    differed = [one for one in events if one.flow == flow and one.epoch == slot.epoch]
    if differed:
        last = differed[-1]
        said += (
            f"; the VMs differ before {last.offset}: primary {last.pvm_digest:016x}, "
            f"secondary {last.svm_digest:016x}"
        )
    return said


def follow(store: HoldStore, seconds: float, pause_s: float = 0.01) -> Iterator[HeldFrame]:
    """Each held frame once, looking again until the time is over; 0: one look."""
    seen: set[tuple[int, int]] = set()
    end_ns = boot_ns() + int(seconds * 1e9)
    while True:
        for frame in store.frames():
            if (frame.slot, frame.at_ns) not in seen:
                seen.add((frame.slot, frame.at_ns))
                yield frame
        if boot_ns() >= end_ns:
            return
        time.sleep(pause_s)  # maps tell nobody that they changed


class Writer:
    """A pcapng file, one section, one Ethernet interface."""

    def __init__(self, stream: BinaryIO, vm: str) -> None:
        header = SectionHeader(options={"shb_userappl": "colo-ebpf"})
        options = {"if_name": vm, "if_tsresol": _NANOSECONDS}
        self._interface: Any = header.new_member(
            InterfaceDescription, link_type=_ETHERNET, snaplen=0, options=options
        )
        self._header: Any = header
        self._writer: Any = pcapng.FileWriter(stream, header)
        self._offset_ns = time.time_ns() - boot_ns()

    def write(self, frame: HeldFrame) -> None:
        """Append one frame, with its comment, at the time it was held."""
        at_ns = frame.at_ns + self._offset_ns
        block: Any = self._header.new_member(EnhancedPacket, options={"opt_comment": frame.comment})
        block.timestamp_high, block.timestamp_low = at_ns >> 32, at_ns & 0xFFFFFFFF
        block.packet_data = frame.data
        self._writer.write_block(block)
