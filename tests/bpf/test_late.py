# SPDX-License-Identifier: GPL-2.0-only
"""How late the SVM is: counted for what was held, in the row of its yardstick."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.packet import Packet

from colo_ebpf.clock import boot_ns
from colo_ebpf.datapath.bpf.abi import LATE_BUCKETS, LiveWord
from colo_ebpf.datapath.maps.dump import held_slots
from tests.bpf.frames import datagram, payload, segment
from tests.bpf.rig import Rig, established

MS = 1_000_000
_FRAMES: dict[str, Callable[[], Packet]] = {
    "stream": lambda: segment(1001, b"hello", ack=5001),
    "datagram": lambda: datagram(b"hello"),
}


def _make_older(rig: Rig, by_ns: int) -> None:
    """What is held was held so much earlier."""
    table = rig.map("colo_hold")
    for ix, slot in held_slots(table):
        slot.at_ns -= by_ns
        table.set(ix.to_bytes(4, "little"), bytes(slot))


def _bucket(counts: tuple[int, ...]) -> int:
    """Of the only one that was counted."""
    assert sum(counts) == 1
    return counts.index(1)


@pytest.mark.parametrize("kind", _FRAMES)
def test_an_svm_that_is_late_is_counted_by_how_late_it_is(kind: str) -> None:
    with established() as rig:
        rig.from_vm(_FRAMES[kind]())
        assert rig.to_client() == []
        _make_older(rig, 40 * MS)
        rig.from_peer(_FRAMES[kind](), 1)
        assert len(rig.to_client()) == 1
        late = rig.plane.lateness()
        assert 16 <= _bucket(late.usual) < LATE_BUCKETS, "2^15 units are 33.6 ms"
        assert sum(late.loaded) == 0


@pytest.mark.parametrize("kind", _FRAMES)
def test_an_svm_that_is_first_is_not_late(kind: str) -> None:
    with established() as rig:
        before = rig.plane.compared_frames()
        rig.from_peer(_FRAMES[kind](), 1)
        rig.from_vm(_FRAMES[kind]())
        assert len(rig.to_client()) == 1
        assert rig.plane.lateness().total == 0
        assert rig.plane.compared_frames() == before + 1


def test_soon_after_a_load_another_row_counts() -> None:
    with established() as rig:
        rig.plane.loaded(boot_ns())
        rig.from_vm(segment(1001, b"hello", ack=5001))
        rig.from_peer(segment(1001, b"hello", ack=5001), 1)
        assert payload(rig.to_client()) == b"hello"
        late = rig.plane.lateness()
        assert (sum(late.usual), sum(late.loaded)) == (0, 1)
        rig.plane.loaded(boot_ns() - 600 * MS)
        rig.from_vm(segment(1006, b"again", ack=5001))
        rig.from_peer(segment(1006, b"again", ack=5001), 1)
        assert payload(rig.to_client()) == b"again"
        late = rig.plane.lateness()
        assert (sum(late.usual), sum(late.loaded)) == (1, 1)
        assert rig.plane.live()[LiveWord.LOADED_NS.name.lower()] > 0


def test_a_load_that_was_noted_within_this_tick_of_the_clock_is_no_other_age() -> None:
    """The clock of a frame is a tick old: it may be before the load's."""
    with established() as rig:
        rig.plane.loaded(boot_ns() + 50 * MS)
        rig.from_vm(segment(1001, b"hello", ack=5001))
        rig.from_peer(segment(1001, b"hello", ack=5001), 1)
        assert payload(rig.to_client()) == b"hello"
        assert sum(rig.plane.lateness().loaded) == 1


def test_one_answer_for_several_counts_once_and_from_the_first() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, b"one", ack=5001))
        assert rig.to_client() == []
        _make_older(rig, 40 * MS)
        rig.from_vm(segment(1004, b"two", ack=5001))
        assert rig.to_client() == []
        rig.from_peer(segment(1001, b"onetwo", ack=5001), 1)
        assert payload(rig.to_client()) == b"onetwo"
        assert _bucket(rig.plane.lateness().usual) >= 16


def test_what_differs_is_not_counted() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, b"hello", ack=5001))
        rig.from_peer(segment(1001, b"jello", ack=5001), 1)
        assert rig.to_client() == []
        assert rig.events()[-1:] == ["mismatch"]
        assert rig.plane.lateness().total == 0
