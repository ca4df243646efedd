# SPDX-License-Identifier: GPL-2.0-only
"""A client that has reset its connection waits for nothing: what is held of it costs nothing."""

from __future__ import annotations

import pytest
from scapy.layers.inet import TCP

from colo_ebpf.model import Mode, Phase
from tests.bpf.frames import payload, request, segment
from tests.bpf.rig import Rig, established

_GONE = ("mir-cli", "drop", "client-gone")
_NEXT = 5001  # of the client's stream, as the PVM has acknowledged it


def _fin_of_the_pvm(rig: Rig) -> None:
    """Both said `bye`, and the PVM alone has closed by now."""
    rig.from_peer(segment(1001, b"bye", ack=_NEXT), 1)
    rig.from_vm(segment(1001, b"bye", ack=_NEXT))
    rig.from_vm(segment(1004, flags="FA", ack=_NEXT))
    assert payload(rig.to_client()) == b"bye"
    assert rig.plane.held_frames() == 1


@pytest.mark.parametrize("flags", ["R", "RA"])
def test_what_is_held_of_a_connection_that_the_client_resets_is_dropped(flags: str) -> None:
    with established() as rig:
        _fin_of_the_pvm(rig)
        rig.from_client(request(_NEXT, flags=flags, ack=1004))
        assert rig.to_client() == []
        assert (rig.plane.held_frames(), rig.count(*_GONE)) == (0, 1)
        assert rig.plane.waiting().oldest_ns is None


def test_a_reset_from_elsewhere_in_the_window_changes_nothing() -> None:
    with established() as rig:
        _fin_of_the_pvm(rig)
        for seq in (_NEXT - 1, _NEXT + 1, _NEXT + 1000):
            rig.from_client(request(seq, flags="R"))
        assert rig.to_client() == []
        assert (rig.plane.held_frames(), rig.count(*_GONE)) == (1, 0)


def test_what_the_pvm_says_behind_it_is_not_held_and_not_sent() -> None:
    with established() as rig:
        rig.from_client(request(_NEXT, flags="R"))
        rig.from_vm(segment(1001, b"late", ack=_NEXT))
        assert rig.to_client() == []
        assert rig.plane.held_frames() == 0
        assert rig.count("cmp-pvm", "drop", "client-gone") == 1


def test_a_pending_ack_is_dropped_too() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, ack=_NEXT + 100))
        assert rig.to_client() == []
        assert rig.plane.held_frames() == 1
        rig.from_client(request(_NEXT + 100, flags="R"))
        assert rig.to_client() == []
        assert rig.plane.held_frames() == 0


def test_a_client_that_is_there_after_all_gets_everything() -> None:
    """As after a loss: its VM sends it again, it is held anew, and a checkpoint lets it out."""
    with established() as rig:
        rig.from_vm(segment(1001, b"hello", ack=_NEXT))
        rig.from_client(request(_NEXT, flags="R"))
        assert rig.to_client() == []
        assert rig.plane.held_frames() == 0
        rig.from_client(request(_NEXT, b"still here", ack=1001))
        rig.from_vm(segment(1001, b"hello", ack=_NEXT))
        assert rig.to_client() == []
        assert rig.plane.held_frames() == 1
        rig.plane.set_turn(2, Phase.OPEN)
        assert rig.plane.flush().emitted == 1
        assert payload(rig.to_client()) == b"hello"


def test_another_connection_on_the_tuple_is_held_as_any() -> None:
    with established() as rig:
        rig.from_client(request(_NEXT, flags="R"))
        rig.from_client(request(9000, flags="S"))
        rig.from_vm(segment(7000, flags="SA", ack=9001))
        assert rig.to_client() == []
        assert rig.plane.held_frames() == 1


def test_one_that_the_guest_opens_too() -> None:
    with established() as rig:
        rig.from_client(request(_NEXT, flags="R"))
        rig.from_vm(segment(7000, flags="S"))
        assert rig.to_client() == []
        assert rig.plane.held_frames() == 1


def test_within_a_turn_everything_is_held() -> None:
    with established() as rig:
        rig.from_client(request(_NEXT, flags="R"))
        rig.plane.set_turn(1, Phase.TURNING)
        rig.from_vm(segment(1001, b"late", ack=_NEXT))
        assert rig.to_client() == []
        assert rig.plane.held_frames() == 1


def test_a_vm_that_is_alone_says_what_it_likes() -> None:
    with established() as rig:
        rig.from_client(request(_NEXT, flags="R"))
        rig.plane.set_mode(Mode.SOLO)
        rig.from_vm(segment(1001, b"late", ack=_NEXT))
        assert payload(rig.to_client()) == b"late"


@pytest.mark.parametrize("first", ["pvm", "svm"])
def test_a_reset_of_both_ends_what_is_held_before_it(first: str) -> None:
    """The SVM had the client's last bytes before it closed, and resets without a FIN."""
    with established() as rig:
        _fin_of_the_pvm(rig)
        sides = [
            lambda: rig.from_vm(segment(1005, flags="R")),
            lambda: rig.from_peer(segment(1005, flags="R"), 1),
        ]
        for say in sides if first == "pvm" else reversed(sides):
            say()
        assert [frame[TCP].flags for frame in rig.to_client()] == ["R"]
        assert rig.plane.held_frames() == 0
        program = "cmp-svm" if first == "pvm" else "cmp-pvm"
        assert rig.count(program, "drop", "client-gone") == 1


def test_a_reset_of_one_ends_nothing() -> None:
    with established() as rig:
        _fin_of_the_pvm(rig)
        rig.from_vm(segment(1005, flags="R"))
        assert rig.to_client() == []
        assert rig.plane.held_frames() == 2
