# SPDX-License-Identifier: GPL-2.0-only
"""What the SVM said last leaves once more when it takes over, and nothing of another state does."""

from __future__ import annotations

import asyncio

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from colo_ebpf.model import Mode, Phase
from tests.bpf.frames import datagram, request, segment, sums_are_right
from tests.bpf.rig import Rig

SKEW = 70_000  # the SVM's ISN against the PVM's


def _open(rig: Rig) -> None:
    rig.from_peer(request(5000, flags="S"), 3)
    rig.from_vm(segment(1000 + SKEW, ack=5001, flags="SA"))
    rig.from_peer(request(5001, ack=1001), 3)
    rig.to_vm()


def _take_over(rig: Rig, epoch: int = 3) -> None:
    rig.plane.keep_offsets(epoch)
    rig.plane.set_mode(Mode.SOLO)


def _again(rig: Rig) -> list[tuple[int, bytes]]:
    """What `repeat` sends to the client."""
    rig.to_client()
    rig.plane.repeat()
    frames = [frame for frame in rig.to_client() if TCP in frame]
    assert all(sums_are_right(frame) for frame in frames)
    return [(frame[TCP].seq, bytes(frame[TCP].payload)) for frame in frames]


def _says(seq: int, data: bytes = b"", flags: str = "A") -> Packet:
    return segment(seq + SKEW, data, ack=5001, flags=flags)


def test_an_answer_that_was_lost_with_the_primary_leaves_again_once(secondary: Rig) -> None:
    _open(secondary)
    secondary.from_vm(_says(1001, b"hello"))
    secondary.from_vm(_says(1006, b"bye", flags="FA"))
    _take_over(secondary)
    assert _again(secondary) == [(1001, b"hello"), (1006, b"bye")]
    assert _again(secondary) == []
    assert secondary.count("flush", "carry", "said-again") == 2


def test_nothing_leaves_before_it_serves_alone(secondary: Rig) -> None:
    _open(secondary)
    secondary.from_vm(_says(1001, b"hello"))
    for mode in (Mode.SECONDARY, Mode.WITHHOLD, Mode.PAIRING):
        secondary.plane.set_mode(mode)
        secondary.plane.keep_offsets(3)
        assert _again(secondary) == []


@pytest.mark.parametrize("taken_over_in", [4, 0])
def test_what_another_state_said_never_leaves(secondary: Rig, taken_over_in: int) -> None:
    _open(secondary)
    secondary.from_vm(_says(1001, b"hello"))
    secondary.plane.set_turn(4, Phase.OPEN)
    secondary.from_vm(segment(1001, b"HELLO", ack=5001))
    _take_over(secondary, taken_over_in)
    assert _again(secondary) == ([(1001, b"HELLO")] if taken_over_in else [])


def test_a_turn_that_is_undone_has_said_what_it_said(secondary: Rig) -> None:
    _open(secondary)
    secondary.from_vm(_says(1001, b"hello"))
    secondary.plane.set_turn(4, Phase.OPEN)
    secondary.plane.set_turn(3, Phase.OPEN)
    _take_over(secondary)
    assert _again(secondary) == [(1001, b"hello")]


def test_nobody_knows_the_epoch(secondary: Rig) -> None:
    """Two states may have spoken in epoch 0."""
    _open(secondary)
    secondary.plane.set_turn(0, Phase.OPEN)
    secondary.from_vm(segment(1001, b"hello", ack=5001))
    _take_over(secondary, 0)
    assert _again(secondary) == []


def test_what_is_not_kept(secondary: Rig) -> None:
    _open(secondary)
    for frame in (
        _says(1000, b"early", flags="SA"),
        _says(1001),
        _says(1001, b"why", flags="RA"),
        datagram(b"datagram"),
    ):
        secondary.from_vm(frame)
    secondary.from_vm_offloaded(_says(1001, bytes(3000)), 1000)
    _take_over(secondary)
    secondary.to_client()
    assert secondary.plane.repeat() == 0


def test_an_offloaded_checksum_is_made(secondary: Rig) -> None:
    _open(secondary)
    secondary.from_vm_offloaded(_says(1001, b"hello"))
    _take_over(secondary)
    assert _again(secondary) == [(1001, b"hello")]


def test_a_tag_leaves_as_it_came(secondary: Rig) -> None:
    frame = segment(1001, b"hello", ack=5001)
    tagged = Ether(src=frame.src, dst=frame.dst) / Dot1Q(vlan=7) / frame.payload
    secondary.from_vm(tagged)
    _take_over(secondary)
    secondary.to_client()
    secondary.plane.repeat()
    (out,) = [f for f in secondary.to_client() if TCP in f]
    assert (out[Dot1Q].vlan, bytes(out[TCP].payload)) == (7, b"hello")


def test_the_last_64_are_kept(secondary: Rig) -> None:
    _open(secondary)
    for n in range(100):
        secondary.from_vm(_says(1001 + 2 * n, b"%02d" % n))
    _take_over(secondary)
    assert sorted(_again(secondary)) == [(1001 + 2 * n, b"%02d" % n) for n in range(36, 100)]


def test_they_are_not_called_held(secondary: Rig) -> None:
    _open(secondary)
    secondary.from_vm(_says(1001, b"hello"))
    assert (secondary.plane.held().frames, secondary.plane.live()["held"]) == (0, 0)
    _take_over(secondary)
    assert len(_again(secondary)) == 1
    assert secondary.plane.live()["held"] == 0


def test_a_fresh_vm_has_said_nothing(secondary: Rig) -> None:
    _open(secondary)
    secondary.from_vm(_says(1001, b"hello"))
    asyncio.run(secondary.plane.forget())
    _take_over(secondary)
    assert _again(secondary) == []


def test_withheld_beside_a_vm_that_is_gone_it_hears_clients_and_keeps_its_answers(
    secondary: Rig,
) -> None:
    _open(secondary)
    secondary.plane.keep_offsets(3)
    secondary.plane.set_mode(Mode.WITHHOLD)
    secondary.from_peer(request(5001, b"GET", ack=1001), 3)
    (frame,) = secondary.to_vm()
    assert (bytes(frame[TCP].payload), frame[TCP].ack) == (b"GET", 1001 + SKEW)
    secondary.to_peer()
    secondary.from_vm(_says(1001, b"answer"))
    assert [f for _, f in secondary.to_peer() if f.type == 0x0800] == []
    assert secondary.to_client() == []
    secondary.plane.set_mode(Mode.SOLO)
    assert _again(secondary) == [(1001, b"answer")]


def test_withheld_without_a_pairing_it_hears_nothing_and_keeps_nothing(secondary: Rig) -> None:
    _open(secondary)
    secondary.plane.set_mode(Mode.WITHHOLD)
    secondary.plane.set_pairing(None)
    secondary.from_peer(request(5001, b"GET", ack=1001), 3)
    assert secondary.to_vm() == []
    secondary.from_vm(_says(1001, b"answer"))
    _take_over(secondary)
    assert _again(secondary) == []
