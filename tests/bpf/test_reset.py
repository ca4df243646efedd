# SPDX-License-Identifier: GPL-2.0-only
"""Both VMs end a connection by a reset, or only one does. Which comes first says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import TCP

from colo_ebpf.datapath.bpf.loader import pin_directory
from colo_ebpf.datapath.maps import dump
from colo_ebpf.datapath.maps.pcap import HoldStore
from colo_ebpf.model import Mode, Phase
from tests.bpf.frames import datagram, request, segment
from tests.bpf.rig import Rig, established


@pytest.fixture
def rig() -> Iterator[Rig]:
    """One connection, verified by both VMs."""
    with established() as rig:
        rig.plane.rearm_held()
        rig.events()
        yield rig


def _resets(rig: Rig) -> list[int]:
    return [f[TCP].seq for f in rig.to_client() if f[TCP].flags & 4]


def _pins(rig: Rig) -> Path:
    spec = rig.plane._spec
    return pin_directory(spec.bpffs, spec.vm)


def _kinds(rig: Rig) -> list[str]:
    return [row["kind"] for row in dump.held(_pins(rig))]


def test_whichever_vm_resets_first_nothing_is_asked_and_nothing_stays(rig: Rig) -> None:
    rig.from_peer(segment(1001, flags="R"), 1)
    assert _kinds(rig) == ["reset"]
    rig.from_vm(segment(1001, flags="R"))
    assert _resets(rig) == [1001]
    assert (_kinds(rig), rig.plane.held_frames()) == ([], 0)
    assert set(rig.events()) <= {"held"}


def test_a_reset_of_the_svm_alone_waits_like_a_held_frame(rig: Rig) -> None:
    """The daemon asks for a checkpoint once it is the oldest for too long."""
    rig.from_peer(segment(1001, flags="R"), 1)
    assert rig.events() == ["held"]
    assert rig.plane.waiting().timer_ns is not None
    assert rig.to_client() == []


def test_it_is_no_frame_to_capture(rig: Rig) -> None:
    rig.from_peer(segment(1001, flags="R"), 1)
    store = HoldStore(_pins(rig))
    assert store.frames() == []
    store.close()


def test_it_counts_once_however_often_the_svm_says_it(rig: Rig) -> None:
    for seq in (1001, 1001, 1050):
        rig.from_peer(segment(seq, flags="R"), 1)
    assert rig.plane.held_frames() == 1


def test_a_pvm_that_says_more_after_it_is_told_of_at_once(rig: Rig) -> None:
    rig.from_peer(segment(1001, b"both", ack=5001), 1)
    rig.from_peer(segment(1005, flags="R"), 1)
    rig.from_vm(segment(1001, b"both", ack=5001))
    assert "svm_reset" not in rig.events()
    for _ in range(2):
        rig.from_vm(segment(1005, b"and more", ack=5001))
    assert rig.events().count("svm_reset") == 1


def test_bytes_the_svm_has_said_are_no_more(rig: Rig) -> None:
    """The SVM was ahead: its reset comes behind what the PVM is about to say."""
    rig.from_peer(segment(1001, b"one two", ack=5001), 1)
    rig.from_peer(segment(1008, flags="R"), 1)
    rig.from_vm(segment(1001, b"one", ack=5001))
    rig.from_vm(segment(1004, b" two", ack=5001))
    rig.from_vm(segment(1008, flags="R"))
    assert "svm_reset" not in rig.events()
    assert rig.plane.held_frames() == 0


def test_the_place_of_the_svms_reset_is_its_own(rig: Rig) -> None:
    """It reset a moment earlier, at another number: the connection is over on both."""
    rig.from_peer(segment(1001, flags="R"), 1)
    rig.from_vm(segment(1005, flags="R"))
    assert _kinds(rig) == ["dgram"]  # it waits for an equal one; the watch is over


@pytest.mark.parametrize("first", ["pvm", "svm"])
def test_once_both_have_reset_others_of_the_pvm_follow(rig: Rig, first: str) -> None:
    """It answers a segment that the SVM had seen before it came to its end."""
    reset = segment(1001, flags="R")
    if first == "pvm":
        rig.from_vm(reset)
    rig.from_peer(reset, 1)
    if first == "svm":
        rig.from_vm(reset)
    assert _resets(rig) == [1001]
    rig.from_vm(reset)
    rig.from_vm(segment(1007, flags="R"))
    assert _resets(rig) == [1001, 1007]
    assert _kinds(rig) == []


def test_of_equal_ones_that_wait_one_is_held(rig: Rig) -> None:
    for _ in range(3):
        rig.from_vm(segment(1001, flags="R"))
    assert (_kinds(rig), rig.count("cmp-pvm", "drop", "held-again")) == (["dgram"], 2)
    rig.from_peer(segment(1001, flags="R"), 1)
    assert (_resets(rig), _kinds(rig)) == ([1001], [])


def test_after_a_checkpoint_a_connection_the_pvm_reset_is_over_on_both(rig: Rig) -> None:
    rig.from_vm(segment(1001, flags="R"))
    rig.plane.set_turn(1, Phase.TURNING)
    rig.plane.set_turn(2, Phase.OPEN)
    rig.plane.flush()
    assert _resets(rig) == [1001]
    rig.from_vm(segment(1001, flags="R"))  # the client did not get it, and asked again
    assert _resets(rig) == [1001]


def test_a_cut_off_primary_says_no_reset_either(rig: Rig) -> None:
    for send in (rig.from_vm, lambda frame: rig.from_peer(frame, 1)):
        send(segment(1001, flags="R"))
    assert _resets(rig) == [1001]
    rig.silence()
    rig.from_vm(segment(1001, flags="R"))
    assert _resets(rig) == []


def test_a_connection_that_is_over_begins_again_under_comparison(rig: Rig) -> None:
    for send in (rig.from_vm, lambda frame: rig.from_peer(frame, 1)):
        send(segment(1001, flags="R"))
    assert _resets(rig) == [1001]
    rig.from_client(request(9000, flags="S"))
    rig.from_vm(segment(2000, ack=9001, flags="SA"))
    rig.from_vm(segment(2001, flags="R"))
    assert _resets(rig) == []


def test_what_the_pvm_has_reset_the_svm_may_reset_as_it_likes(rig: Rig) -> None:
    rig.from_vm(segment(1001, flags="R"))
    rig.from_peer(segment(1001, flags="R"), 1)
    rig.from_peer(segment(1001, flags="R"), 1)
    rig.from_peer(segment(1002, flags="R"), 1)
    assert _kinds(rig) == []


def test_a_connection_that_lives_on_after_a_reset_is_watched_again(rig: Rig) -> None:
    """A reset that answers a stray segment ends nothing."""
    rig.from_vm(segment(900, flags="R"))
    rig.from_vm(segment(1001, ack=5001))
    rig.from_peer(segment(1001, flags="R"), 1)
    assert "reset" in _kinds(rig)


def test_a_new_connection_of_the_tuple_begins_without_it(rig: Rig) -> None:
    rig.from_peer(segment(1001, flags="R"), 1)
    rig.from_client(request(9000, flags="S"))
    rig.from_vm(segment(2000, ack=9001, flags="SA"))
    rig.from_peer(segment(3000, ack=9001, flags="SA"), 1)
    rig.from_peer(segment(2001, flags="R"), 1)
    assert _kinds(rig) == ["reset", "reset"]


def test_one_nobody_knows_the_connection_of_is_not_kept(rig: Rig) -> None:
    frame = segment(1001, flags="R")
    frame[TCP].sport = 81
    rig.from_peer(frame, 1)
    assert _kinds(rig) == []


def test_a_checkpoint_makes_it_nothing(rig: Rig) -> None:
    """The SVM has the PVM's connection again. What it said before never leaves."""
    rig.from_peer(segment(1001, flags="R"), 1)
    rig.plane.set_turn(1, Phase.TURNING)
    rig.plane.set_turn(2, Phase.OPEN)
    assert rig.plane.flush().left == 0
    assert (_kinds(rig), rig.plane.held_frames(), rig.to_client()) == ([], 0, [])
    rig.from_peer(segment(1001, flags="R"), 2)
    assert _kinds(rig) == ["reset"]


def test_it_waits_for_the_checkpoint_and_no_flush_before(rig: Rig) -> None:
    rig.from_peer(segment(1001, flags="R"), 1)
    rig.plane.flush()
    assert _kinds(rig) == ["reset"]


@pytest.mark.parametrize("known", [True, False])
def test_a_vm_alone_sends_no_reset_of_the_other(rig: Rig, known: bool) -> None:
    rig.from_peer(segment(1001, flags="R"), 1)
    if not known:
        table = rig.map("colo_flows")
        for key in rig.flows():
            table.delete(key)
    rig.plane.set_mode(Mode.SOLO)
    assert rig.plane.flush().left == 0
    assert (_kinds(rig), rig.plane.held_frames(), rig.to_client()) == ([], 0, [])


def test_a_slot_that_has_become_anothers_is_left_alone(rig: Rig) -> None:
    """A flush took the reset out of it; what the connection noted of it is of the past epoch."""
    rig.from_peer(segment(1001, flags="R"), 1)
    rig.plane.set_turn(1, Phase.TURNING)
    rig.plane.set_turn(2, Phase.OPEN)
    rig.plane.flush()
    rig.from_vm(datagram(b"another's"))
    (number, _), *_ = dump.held_slots(rig.map("colo_hold"))
    rig.change_flows(epoch=1, svm_reset=number + 1)
    rig.from_vm(segment(1001, flags="R"))
    assert _kinds(rig) == ["dgram", "dgram"]


def test_a_store_without_room_is_told_of() -> None:
    with established(slots=16) as small:
        for n in range(20):
            small.from_vm(segment(1001 + n, b"x", ack=5001))
        small.events()
        small.from_peer(segment(1001, flags="R"), 1)
        assert small.events() == ["store_full"]
