# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon sees of the hold store."""

from __future__ import annotations

import ctypes

import pytest

from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.abi import SlotKind, SlotState
from colo_ebpf.datapath.maps import hold_store
from colo_ebpf.datapath.maps.hold_store import HeldSlots

SLOTS = 32


def _store(monkeypatch: pytest.MonkeyPatch, **slots: dict[str, int]) -> HeldSlots:
    """`s3={...}`: fields of slot 3."""
    table = (abi.Slot * SLOTS)()
    for name, fields in slots.items():
        for field, value in fields.items():
            setattr(table[int(name[1:])], field, value)
    words = memoryview(bytearray(bytes(table))).cast("Q")
    assert len(words) * 8 == SLOTS * ctypes.sizeof(abi.Slot)
    monkeypatch.setattr(hold_store, "mapped", lambda fd: words)
    return HeldSlots(0)


def _held(at_ns: int, **fields: int) -> dict[str, int]:
    kind = {"state": SlotState.HELD, "kind": SlotKind.STREAM, "at_ns": at_ns, "len": 100}
    return {**kind, **fields}


def test_an_empty_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(monkeypatch)
    assert (store.oldest_ns(), store.report()) == ((None,) * 3, (0, 0, None))


def test_the_oldest_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(monkeypatch, s0=_held(70), s1=_held(50, len=2000), s31=_held(60))
    assert store.oldest_ns() == (50, None, None)
    assert store.report() == (3, 2200, 50)


def test_a_frame_that_is_leaving_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(monkeypatch, s4=_held(50, state=SlotState.LEAVING), s5=_held(60))
    assert store.oldest_ns() == (60, None, None)
    assert store.report()[0] == 2


def test_what_a_secondary_said_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(monkeypatch, s0=_held(50, kind=SlotKind.SAID), s1=_held(60))
    assert store.report() == (1, 100, 60)


def test_words_with_two_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kind and length share theirs with others."""
    full = 0xFFFFFFFF
    store = _store(monkeypatch, s2=_held(50, len=7, end=full, tcp_off=full, gen=full, next=full))
    assert store.report() == (1, 7, 50)


def test_what_the_guest_says_is_told_from_what_its_stack_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = 0xFFFFFFFF
    store = _store(
        monkeypatch,
        s0=_held(30, data_off=full),  # a SYN+ACK
        s1=_held(50, bytes=1),
        s2=_held(40, bytes=100),
        s3=_held(20, kind=SlotKind.ACK),
    )
    assert store.oldest_ns() == (30, 40, 20)
    store = _store(monkeypatch, s0=_held(30, kind=SlotKind.DGRAM))
    assert store.oldest_ns() == (30, 30, None)
