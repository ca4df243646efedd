# SPDX-License-Identifier: GPL-2.0-only
"""The VMs cut their streams at different places, bytes get lost, a VM resends."""

from __future__ import annotations

import pytest
from scapy.layers.inet import TCP

from tests.bpf.frames import payload, stream, sums_are_right
from tests.bpf.rig import Rig
from tests.bpf.wraps import WRAPS, Wrap, both_connect, plain4, tcp


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("who_resends", ["pvm", "svm"])
def test_the_verified_part_of_a_held_frame_leaves_if_a_vm_resends(
    wrap: Wrap, who_resends: str
) -> None:
    """Neither sends more before the client acknowledges just this."""
    with Rig() as rig:
        both_connect(rig, wrap)
        data = bytes(range(256)) * 4
        frame, half = wrap(tcp(1001, data, flags="PAF")), wrap(tcp(1001, data[:501]))
        if who_resends == "pvm":
            rig.from_peer(half, 1)
            rig.from_vm(frame)
            assert rig.to_client() == []
            rig.from_vm(frame)
        else:
            rig.from_vm(frame)
            rig.from_peer(half, 1)
            assert rig.to_client() == []
            rig.from_peer(half, 1)
        (part,) = rig.to_client()
        verified = 501 if who_resends == "pvm" else 500  # of a held frame: whole words
        assert (str(part[TCP].flags), bytes(part[TCP].payload)) == ("A", data[:verified])
        assert sums_are_right(part)
        assert rig.plane.held().frames == 1
        rig.from_peer(wrap(tcp(1502, data[501:], flags="PAF")), 1)
        (whole,) = rig.to_client()
        assert bytes(whole) == bytes(frame)
        assert rig.plane.held().frames == 0


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_verified_part_that_was_lost_leaves_each_time_the_pvm_resends(wrap: Wrap) -> None:
    """As found: it left once. Lost on a client's wire, it kept both VMs waiting for an ACK."""
    with Rig() as rig:
        both_connect(rig, wrap)
        data = bytes(range(256)) * 4
        frame, half = wrap(tcp(1001, data, flags="PAF")), wrap(tcp(1001, data[:501]))
        rig.from_peer(half, 1)
        rig.from_vm(frame)
        for _ in range(3):
            rig.from_vm(frame)
            (part,) = rig.to_client()
            assert (str(part[TCP].flags), bytes(part[TCP].payload)) == ("A", data[:501])
            assert sums_are_right(part)
            assert rig.plane.held().frames == 1
        rig.from_peer(wrap(tcp(1502, data[501:], flags="PAF")), 1)
        (whole,) = rig.to_client()
        assert bytes(whole) == bytes(frame)


def test_lost_bytes_leave_again_in_a_longer_frame_than_before() -> None:
    """TCP joins small segments when it resends them; only the first of these was verified."""
    with Rig() as rig:
        both_connect(rig, plain4)
        first, second = b"first" * 20, b"second" * 20
        rig.from_vm(plain4(tcp(1001, first)))
        rig.from_peer(plain4(tcp(1001, first)), 1)
        assert payload(rig.to_client()) == first
        rig.from_vm(plain4(tcp(1101, second)))
        for _ in range(2):
            rig.from_vm(plain4(tcp(1001, first + second)))
            assert payload(rig.to_client()) == first
        rig.from_peer(plain4(tcp(1101, second)), 1)
        assert payload(rig.to_client()) == second
        assert rig.plane.held().frames == 0


def test_lost_bytes_leave_again_out_of_a_gso_frame() -> None:
    """One frame's worth; the client's ACK brings the next."""
    data = stream(5000)
    with Rig() as rig:
        both_connect(rig, plain4)
        rig.from_vm(plain4(tcp(1001, data[:1000])))
        rig.from_vm_offloaded(plain4(tcp(2001, data[1000:])), 1000)
        rig.from_peer(plain4(tcp(1001, data[:1500])), 1)
        assert payload(rig.to_client()) == data[:1000]
        rig.from_peer(plain4(tcp(1001, data[:1500])), 1)
        assert payload(rig.to_client()) == data[1000:1500]
        for seq, end in ((1001, 1000), (2001, 1500), (2001, 1500)):
            rig.from_vm_offloaded(plain4(tcp(seq, data[seq - 1001 :])), 1000)
            (again,) = rig.to_client()
            assert (again[TCP].seq, bytes(again[TCP].payload)) == (seq, data[seq - 1001 : end])
            assert sums_are_right(again)
        rig.from_peer(plain4(tcp(2501, data[1500:])), 1)
        assert payload(rig.to_client()) == data[1000:]
        assert rig.plane.held().frames == 0


def test_a_resent_segment_of_the_svm_verifies_bytes_it_sent_before() -> None:
    """The SVM was ahead; the PVM, after a time-out, sends one short segment and waits."""
    data = bytes(range(200))
    with Rig() as rig:
        both_connect(rig, plain4)
        rig.from_peer(plain4(tcp(1001, data)), 1)
        rig.from_vm(plain4(tcp(1001, data[:120])))
        assert rig.to_client() == []
        rig.from_peer(plain4(tcp(1001, data[:100])), 1)
        assert [bytes(f[TCP].payload) for f in rig.to_client()] == [data[:100]]
        rig.from_vm(plain4(tcp(1121, data[120:])))
        assert rig.to_client()[-1][TCP].payload.load == data[120:]


def test_bytes_that_differ_are_found_where_no_digest_is() -> None:
    data = bytes(range(200))
    with Rig() as rig:
        both_connect(rig, plain4)
        rig.from_vm(plain4(tcp(1001, data)))
        wrong = plain4(tcp(1001, data[:60] + b"?" + data[61:100]))
        rig.from_peer(wrong, 1)
        assert rig.plane.mismatches() == []
        rig.from_peer(wrong, 1)
        (event,) = rig.plane.mismatches()
        assert event.offset in range(1001 + 56, 1001 + 62)
        assert b"".join(bytes(f[TCP].payload) for f in rig.to_client()) == data[:56]


def test_a_byte_is_no_fin() -> None:
    with Rig() as rig:
        both_connect(rig, plain4)
        rig.from_vm(plain4(tcp(1001, b"four", flags="AF")))
        for _ in range(2):
            rig.from_peer(plain4(tcp(1001, b"four\0")), 1)
        assert [str(f[TCP].flags) for f in rig.to_client()] in ([], ["A"])
        assert rig.plane.held().frames == 1
