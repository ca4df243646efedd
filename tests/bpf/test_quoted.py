# SPDX-License-Identifier: GPL-2.0-only
"""ICMP errors quote a segment: its numbers are translated like the segment's own."""

from __future__ import annotations

import asyncio

import pytest
from scapy.layers.inet import ICMP, IP, TCP, TCPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from colo_ebpf.lab.frames import CLIENT, VM
from colo_ebpf.model import Mode, Phase
from tests.bpf.frames import request, segment, sums_are_right
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig

SKEW, ROUTER = 70000, "192.0.2.254"
VM6, CLIENT6, ROUTER6 = "2001:db8::10", "2001:db8::1", "2001:db8::fe"


@pytest.fixture
def taught(secondary: Rig) -> Rig:
    """A secondary whose connection has learnt its offset."""
    secondary.from_peer(request(5000, flags="S"), 3)
    secondary.from_vm(segment(1000 + SKEW, ack=5001, flags="SA"))
    secondary.from_peer(request(5001, ack=1001), 3)
    secondary.to_vm()
    secondary.to_peer()
    return secondary


def _too_large(seq: int, cut: int | None = None) -> Packet:
    """A router says that a segment of the VM does not fit."""
    quoted = bytes(IP(src=VM, dst=CLIENT) / TCP(sport=80, dport=4711, seq=seq, ack=7, flags="A"))
    error = ICMP(type=3, code=4, nexthopmtu=1400) / quoted[:cut]
    return Ether(src=CLIENT_MAC, dst=VM_MAC) / IP(src=ROUTER, dst=VM) / error


def _refused(ack: int, cut: int | None = None) -> Packet:
    """The VM says that a segment of the client is prohibited."""
    head = TCP(sport=4711, dport=80, seq=5001, ack=ack, flags="A")
    quoted = bytes(IP(src=CLIENT, dst=VM) / head)
    error = ICMP(type=3, code=13) / quoted[:cut]
    return Ether(src=VM_MAC, dst=CLIENT_MAC) / IP(src=VM, dst=CLIENT) / error


def test_an_error_for_the_vm_quotes_the_numbers_the_vm_knows(taught: Rig) -> None:
    taught.from_peer(_too_large(1001), 3)
    (got,) = taught.to_vm()
    assert got[TCPerror].seq == 1001 + SKEW
    assert sums_are_right(got)


@pytest.mark.parametrize("cut", [None, 28])
def test_an_error_of_the_vm_quotes_the_numbers_the_client_knows(
    taught: Rig, cut: int | None
) -> None:
    taught.from_vm(_refused(1001 + SKEW, cut))
    ((tag, got),) = [row for row in taught.to_peer() if ICMP in row[1]]
    assert tag == 3
    if cut is None:
        assert got[TCPerror].ack == 1001
    assert sums_are_right(got)


@pytest.mark.parametrize("cut", range(0, 29, 4))
def test_what_is_quoted_too_short_is_left_alone(taught: Rig, cut: int) -> None:
    sent = _too_large(1001, cut)
    taught.from_peer(sent, 3)
    (got,) = taught.to_vm()
    assert sums_are_right(got)
    assert (bytes(got) == bytes(sent)) == (cut < 28)


def test_errors_about_other_connections_are_left_alone(taught: Rig) -> None:
    other = Ether(bytes(_too_large(1001)))
    other[TCPerror].dport = 4712
    del other[ICMP].chksum
    taught.from_peer(other, 3)
    (got,) = taught.to_vm()
    assert bytes(got) == bytes(Ether(bytes(other)))


def test_after_a_takeover_and_with_lasting_offsets_too(taught: Rig) -> None:
    taught.plane.keep_offsets(3)
    taught.plane.set_mode(Mode.SOLO)
    taught.plane.set_turn(0, Phase.OPEN)
    for fold in (False, True):
        if fold:
            assert len(asyncio.run(taught.plane.fold_offsets())) == 1
        taught.from_client(_too_large(1001))
        (got,) = [f for f in taught.to_vm() if ICMP in f]
        assert got[TCPerror].seq == 1001 + SKEW
        taught.from_vm(_refused(1001 + SKEW))
        (out,) = [f for f in taught.to_client() if ICMP in f]
        assert out[TCPerror].ack == 1001
        assert sums_are_right(got)
        assert sums_are_right(out)


def test_errors_of_ipv6(taught: Rig) -> None:
    def tcp(seq: int, ack: int, flags: str) -> Packet:
        return TCP(sport=80, dport=4711, seq=seq, ack=ack, flags=flags)

    def of_vm(packet: Packet) -> Packet:
        return Ether(src=VM_MAC, dst=CLIENT_MAC) / IPv6(src=VM6, dst=CLIENT6) / packet

    def for_vm(source: str, packet: Packet) -> Packet:
        return Ether(src=CLIENT_MAC, dst=VM_MAC) / IPv6(src=source, dst=VM6) / packet

    back = TCP(sport=4711, dport=80, seq=5001, ack=1001, flags="A")
    taught.from_vm(of_vm(tcp(1000 + SKEW, 5001, "SA")))
    taught.from_peer(for_vm(CLIENT6, back), 3)
    taught.to_vm()
    taught.to_peer()
    quoted = bytes(IPv6(src=VM6, dst=CLIENT6) / tcp(1001, 5001, "A"))
    taught.from_peer(for_vm(ROUTER6, ICMPv6PacketTooBig(mtu=1400) / quoted), 3)
    (got,) = taught.to_vm()
    assert got[TCPerror].seq == 1001 + SKEW
    sent = got[ICMPv6PacketTooBig].cksum
    again = got.copy()
    del again[ICMPv6PacketTooBig].cksum
    assert Ether(bytes(again))[ICMPv6PacketTooBig].cksum == sent

    refused = ICMPv6DestUnreach(code=1) / bytes(
        IPv6(src=CLIENT6, dst=VM6) / TCP(sport=4711, dport=80, seq=5001, ack=1001 + SKEW, flags="A")
    )
    taught.from_vm(of_vm(refused))
    (out,) = [f for _, f in taught.to_peer() if ICMPv6DestUnreach in f]
    assert out[TCPerror].ack == 1001
