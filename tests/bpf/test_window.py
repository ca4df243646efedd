# SPDX-License-Identifier: GPL-2.0-only
"""What the client is told later: it was told less than the PVM meant, for the SVM was behind.

The PVM says it once. Without a copy of that the client would stand until its timer fires: 200 ms
at least, whether it probes a closed window or sends again what was received long ago.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import TCP

from tests.bpf.frames import payload, segment, sums_are_right
from tests.bpf.rig import Rig, established
from tests.capabilities import require


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf")


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A connection both VMs have accepted."""
    with established() as made:
        yield made


def _told(rig: Rig) -> list[tuple[int, int]]:
    """Acknowledgment and window of each frame the client gets now; none has a payload."""
    frames = rig.to_client()
    assert payload(frames) == b""
    assert all(sums_are_right(frame) for frame in frames)
    return [(frame[TCP].ack, frame[TCP].window) for frame in frames]


def _pvm(rig: Rig, ack: int, window: int) -> None:
    rig.from_vm(segment(1001, ack=ack, window=window))


def _svm(rig: Rig, ack: int, window: int) -> None:
    rig.from_peer(segment(1001, ack=ack, window=window), 1)


def test_the_svm_opens_its_window(rig: Rig) -> None:
    """Its server reads a moment later. Then the client is told, in the PVM's own words."""
    _svm(rig, 5001, 0)
    _pvm(rig, 5001, 20_000)
    assert _told(rig) == [(5001, 0)]
    assert rig.plane.held().frames == 1
    _svm(rig, 5001, 9_000)
    assert _told(rig) == [(5001, 9_000)]
    assert rig.plane.held().frames == 0


def test_it_opens_a_little_first(rig: Rig) -> None:
    """What is told each time is worth a segment: twice as much as before (as Linux itself does)."""
    _svm(rig, 5001, 0)
    _pvm(rig, 5001, 20_000)
    assert _told(rig) == [(5001, 0)]
    for window, told in (
        (300, [(5001, 300)]),
        (400, []),
        (700, [(5001, 700)]),
        (5_000, [(5001, 5_000)]),
    ):
        _svm(rig, 5001, window)
        assert _told(rig) == told
    assert rig.plane.held().frames == 0  # 20 KB: the client goes on


def test_its_window_closes_with_what_it_acknowledges(rig: Rig) -> None:
    """The PVM's ACK waited for it, and left with its closed window."""
    _pvm(rig, 6001, 20_000)
    assert _told(rig) == []
    _svm(rig, 6001, 0)
    assert _told(rig) == [(6001, 0)]
    _svm(rig, 6001, 8_000)
    assert _told(rig) == [(6001, 8_000)]
    assert rig.plane.held().frames == 0


def test_the_pvm_says_it_again_meanwhile(rig: Rig) -> None:
    """One copy, of the newest."""
    _svm(rig, 5001, 0)
    for window in (19_000, 20_000):
        _pvm(rig, 5001, window)
    assert _told(rig) == [(5001, 0)] * 2
    assert rig.plane.held().frames == 1
    _svm(rig, 5001, 30_000)
    assert _told(rig) == [(5001, 20_000)]


def test_the_pvm_closes_its_window_meanwhile(rig: Rig) -> None:
    """There is nothing to make up for any more."""
    _svm(rig, 5001, 0)
    _pvm(rig, 5001, 20_000)
    _pvm(rig, 5001, 0)
    assert _told(rig) == [(5001, 0)] * 2
    assert rig.plane.held().frames == 0
    _svm(rig, 5001, 30_000)
    assert _told(rig) == []


@pytest.mark.parametrize("window", [19_000, 5_000])
def test_a_window_with_room_is_no_matter(rig: Rig, window: int) -> None:
    """The client goes on, and the next ACK says more."""
    _svm(rig, 5001, window)
    _pvm(rig, 5001, 20_000)
    assert _told(rig) == [(5001, window)]
    assert rig.plane.held().frames == 0


def test_an_answer_leaves_with_a_closed_window(rig: Rig) -> None:
    """The SVM opens it: then the client is told by an ACK that follows the answer."""
    rig.from_peer(segment(1001, b"answer", ack=5001, window=0), 1)
    rig.from_vm(segment(1001, b"answer", ack=5001, window=20_000))
    (frame,) = rig.to_client()
    assert (bytes(frame[TCP].payload), frame[TCP].window) == (b"answer", 0)
    rig.from_peer(segment(1007, ack=5001, window=9_000), 1)
    (frame,) = rig.to_client()
    assert (frame[TCP].seq, bytes(frame[TCP].payload)) == (1007, b"")
    assert (frame[TCP].ack, frame[TCP].window) == (5001, 9_000)
    assert sums_are_right(frame)
    assert rig.plane.held().frames == 0


def test_an_answer_leaves_with_its_ack_lowered(rig: Rig) -> None:
    """The SVM answered before it had all that the PVM had. Then it acknowledges the rest."""
    rig.from_peer(segment(1001, b"answer", ack=5001), 1)
    rig.from_vm(segment(1001, b"answer", ack=5400, flags="PA"))
    (frame,) = rig.to_client()
    assert frame[TCP].ack == 5001
    assert rig.plane.held().frames == 1
    rig.from_peer(segment(1007, ack=5400), 1)
    (frame,) = rig.to_client()
    assert (frame[TCP].seq, frame[TCP].ack, frame[TCP].flags) == (1007, 5400, "A")
    assert bytes(frame[TCP].payload) == b""
    assert sums_are_right(frame)
    assert rig.plane.held().frames == 0


def test_its_sum_is_right_whatever_was_in_its_slot_before(rig: Rig) -> None:
    """As found: a client did not take it, for the slot had been a longer frame's."""
    slots = rig.plane.held().slots
    data = bytes(range(100))
    for n in range(slots):  # each slot of the store has had one
        answer = segment(1001 + 100 * n, data, ack=5001)
        rig.from_vm(answer)
        rig.from_peer(answer, 1)
    rig.to_client()
    at = 1001 + 100 * slots
    rig.from_peer(segment(at, ack=5001, window=0), 1)
    rig.from_vm(segment(at, ack=5001, window=20_000))
    assert _told(rig) == [(5001, 0)]
    rig.from_peer(segment(at, ack=5001, window=9_000), 1)
    assert _told(rig) == [(5001, 9_000)]
