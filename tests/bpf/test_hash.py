# SPDX-License-Identifier: GPL-2.0-only
"""Bytes that differ have digests that differ: above all where programs' outputs do differ.

A multiplication takes the highest bit of a word to the highest bit of the product, whatever the key
is. So a hash of eight bytes at a time is weak where a double has its sign, if nothing is done about
it.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP

from tests.bpf.frames import datagram, payload, segment
from tests.bpf.rig import Rig, established

Cuts = list[tuple[int, bytes]]  # offset in the stream, and the bytes there


def _flip(data: bytes, bits: tuple[int, ...]) -> bytes:
    number = int.from_bytes(data, "little")
    for bit in bits:
        number ^= 1 << bit
    return number.to_bytes(len(data), "little")


def _signs(words: int, width: int, count: int) -> Iterator[tuple[int, ...]]:
    """The signs of so many of the numbers, of so many bits each."""
    for chosen in itertools.combinations(range(words * 64 // width), count):
        yield tuple((number + 1) * width - 1 for number in chosen)


def _differences(words: int) -> list[tuple[int, ...]]:
    pairs = itertools.combinations(range(words), 2)
    return [
        *((bit,) for bit in range(0, words * 64, 7)),
        *_signs(words, 64, 2),
        *_signs(words, 64, 3),
        *_signs(words, 32, 2),
        *((64 * a, 64 * b) for a, b in pairs),
    ]


@pytest.mark.parametrize("words", range(2, 9))
def test_datagrams_that_differ_in_a_few_bits(words: int) -> None:
    """In whole blocks of the hash, and in what is behind the last."""
    draw = random.Random(words)
    different = _differences(words)
    with Rig() as rig:
        rig.pair()
        for bits in different:
            ours = draw.randbytes(words * 8)
            rig.from_peer(datagram(_flip(ours, bits)), 1)
            rig.from_vm(datagram(ours))
        assert rig.to_client() == []
        assert rig.count("cmp-pvm", "hold", "unverified") == len(different)


@pytest.mark.parametrize("pvm_first", [True, False])
@pytest.mark.parametrize("words", range(2, 9))
def test_streams_that_differ_in_the_signs_of_two_doubles(words: int, pvm_first: bool) -> None:
    ours = struct.pack(f"<{words}d", *(1.5 * n for n in range(1, words + 1)))
    for bits in _signs(words, 64, 2):
        _differ(ours, _flip(ours, bits), pvm_first)


def _both(rig: Rig, ours: Cuts, theirs: Cuts, pvm_first: bool) -> None:
    """The two VMs' streams, one behind the other."""
    sides = [(rig.from_vm, ours), (lambda frame: rig.from_peer(frame, 1), theirs)]
    for send, cuts in sides if pvm_first else reversed(sides):
        for at, data in cuts:
            send(segment(1001 + at, data, ack=5001))


def _differ(ours: bytes, theirs: bytes, pvm_first: bool) -> None:
    with established() as rig:
        _both(rig, [(0, ours)], [(0, theirs)], pvm_first)
        assert rig.to_client() == []
        assert len(rig.plane.mismatches()) == 1


def test_a_stream_of_zeros_does_not_forget_what_was_before_it() -> None:
    with established() as rig:
        zeros = bytes(1440)
        rig.from_peer(segment(1001, b"SVM." + zeros, ack=5001), 1)
        rig.from_vm(segment(1001, b"PVM.", ack=5001))
        rig.from_vm(segment(1005, zeros, ack=5001))
        assert rig.to_client() == []
        assert len(rig.plane.mismatches()) == 1


@pytest.mark.parametrize("pvm_first", [True, False])
@pytest.mark.parametrize("step", [1, 7, 8, 9, 31, 33, 63, 64, 65, 71])
def test_short_segments_are_the_same_stream_as_long_ones(step: int, pvm_first: bool) -> None:
    """However many bytes are in hand already, and however few come."""
    stream = random.Random(step).randbytes(min(40 * step, 2800))
    short = [(at, stream[at : at + step]) for at in range(0, len(stream), step)]
    long = [(at, stream[at : at + 1400]) for at in range(0, len(stream), 1400)]
    with established() as rig:
        _both(rig, short, long, pvm_first)
        assert payload(rig.to_client()) == stream
        assert rig.plane.mismatches() == []


@pytest.mark.parametrize("head", [14, 20, 38, 50, 53, 54, 55, 60, 62, 63])
def test_a_segment_whose_bytes_lie_in_pages(head: int) -> None:
    """Only what an skb has in its head can be read and written in place."""
    with established() as rig:
        rig.from_peer_in_pages(segment(1001, b"twelve bytes", ack=5001), head)
        rig.from_vm(segment(1001, b"twelve bytes", ack=5001))
        assert payload(rig.to_client()) == b"twelve bytes"
        held = segment(1013, b"eleven more", ack=5001)
        rig.from_vm(held)
        theirs = held.copy()
        theirs[IP].id, theirs[IP].ttl = 77, 63
        rig.from_peer_in_pages(theirs, head)
        assert [bytes(frame) for frame in rig.to_client()] == [bytes(held)]
        assert rig.count("drain", "carry", "whole") == 1


def test_datagrams_of_any_length_in_pages_or_not() -> None:
    draw = random.Random(5)
    sent = [datagram(draw.randbytes(length)) for length in range(80)]
    with Rig() as rig:
        rig.pair()
        for frame in sent:
            rig.from_peer_in_pages(frame, 40)
        for frame in reversed(sent):
            rig.from_vm(frame)
        assert len(rig.to_client()) == len(sent)
