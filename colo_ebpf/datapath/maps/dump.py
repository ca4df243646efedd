# SPDX-License-Identifier: GPL-2.0-only
"""The pinned maps of a VM as rows for people. Needs no daemon: they outlive it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colo_ebpf.clock import ago_ns, boot_ns
from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.syscalls import RawMap, obj_get
from colo_ebpf.datapath.maps.decode import flow_text

_TCP = 6
_SHOWN = (
    abi.FlowFlag.ANCHORED,
    abi.FlowFlag.BAD,
    abi.FlowFlag.LOST,
    abi.FlowFlag.PVM_FIN,
    abi.FlowFlag.RESET,
)


def _entries(path: Path) -> Iterator[tuple[bytes, bytes]]:
    table = RawMap(obj_get(str(path)))
    try:
        for key in list(table.keys()):
            value = table.get(key)
            if value is not None:
                yield key, value
    finally:
        os.close(table.fd)


def _ms_since(at_ns: int, now_ns: int) -> float:
    return ago_ns(at_ns, now_ns) / 1e6


def flows(pins: Path) -> list[dict[str, Any]]:
    """TCP connections: both sides' next byte, how far they are verified, what is held.

    Raises DatapathError if the VM has no pinned maps.
    """
    now_ns = boot_ns()
    offsets = dict(_entries(pins / "colo_last"))
    return [
        _flow(key, abi.Flow.from_buffer_copy(raw), offsets.get(key), now_ns)
        for key, raw in _entries(pins / "colo_flows")
    ]


def _flow(key: bytes, flow: abi.Flow, lasting: bytes | None, now_ns: int) -> dict[str, Any]:
    last = abi.Lasting.from_buffer_copy(lasting) if lasting else abi.Lasting()
    return {
        "flow": flow_text(abi.FlowKey.from_buffer_copy(key), _TCP),
        "epoch": flow.epoch,
        "pvm_next": flow.pvm.next,
        "svm_next": flow.svm.next,
        "verified": flow.verified,
        "anchor": flow.anchor,
        "pvm_ack": flow.p_ack,
        "floor": flow.floor,
        "client_ack": flow.c_ack,
        "held": flow.held,
        "boundaries": flow.bounds,
        "lasting_offset": last.delta,
        "idle_ms": _ms_since(flow.seen_ns, now_ns),
        "flags": [str(one.name).lower() for one in _SHOWN if flow.flags & one],
    }


def held_slots(table: RawMap) -> list[tuple[int, abi.Slot]]:
    """Number and content of the slots that hold a frame, oldest first; `table`: colo_hold."""
    slots = (abi.Slot * table.info.max_entries).from_buffer_copy(table.all())
    waiting = [row for row in enumerate(slots) if row[1].state == abi.SlotState.HELD]
    return sorted(waiting, key=lambda row: int(row[1].at_ns))


def slot_flow(slot: abi.Slot) -> str:
    """The flow of a held frame."""
    return flow_text(slot.flow, 0 if slot.kind == abi.SlotKind.DGRAM else _TCP)


def held(pins: Path) -> list[dict[str, Any]]:
    """Held frames, oldest first. Raises DatapathError if the VM has no pinned maps."""
    now_ns = boot_ns()
    table = RawMap(obj_get(str(pins / "colo_hold")))
    try:
        waiting = held_slots(table)
    finally:
        os.close(table.fd)
    return [
        {
            "flow": slot_flow(slot),
            "kind": abi.SlotKind(slot.kind).name.lower(),
            "epoch": slot.epoch,
            "age_ms": _ms_since(slot.at_ns, now_ns),
            "bytes": slot.len,
            "end": slot.end,
            "ack": slot.ack,
            "digest": f"{slot.digest:016x}",
        }
        for _, slot in waiting
    ]
