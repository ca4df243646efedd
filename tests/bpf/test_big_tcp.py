# SPDX-License-Identifier: GPL-2.0-only
"""BIG TCP: frames of clients that are longer than an IP header can say.

Its length is 0 then, and the frame's is the skb's. IPv6 may say it in a hop-by-hop option. Such a
frame is cut before it leaves the host; on the way through it, it is one.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop, Jumbo
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from colo_ebpf.datapath.bpf import abi
from colo_ebpf.lab.checksum import checksum
from colo_ebpf.lab.frames import CLIENT, VM
from colo_ebpf.model import Mode
from tests.bpf.frames import payload, request, segment, stream, sums_are_right
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig

MSS = 1400
DATA = stream(70_000)
VM6, CLIENT6 = "2001:db8::10", "2001:db8::1"
SKEW = 70_000  # the SVM's ISN against the PVM's
Wrap = Callable[[Packet], Packet]


def _ether() -> Packet:
    return Ether(src=CLIENT_MAC, dst=VM_MAC)


def _four(packet: Packet) -> Packet:
    return _ether() / IP(src=CLIENT, dst=VM, len=0) / packet


def _six(packet: Packet) -> Packet:
    return _ether() / IPv6(src=CLIENT6, dst=VM6, plen=0) / packet


def _six_with_the_option(packet: Packet) -> Packet:
    option = IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=len(packet) + 8)])
    return _ether() / IPv6(src=CLIENT6, dst=VM6, plen=0) / option / packet


def _segment(data: bytes) -> Packet:
    return TCP(sport=4711, dport=80, seq=5001, ack=1001, flags="A", window=1000) / data


def _big(wrap: Wrap, data: bytes = DATA) -> bytes:
    """With its virtio header; as Linux does, the sum of the pseudo-header has all of the length."""
    raw = bytearray(bytes(wrap(_segment(data))))
    l4, six = len(raw) - len(data) - 20, wrap is not _four
    ends = bytes(raw[22:54] if six else raw[26:34])
    pseudo = ends + struct.pack("!IHH", len(raw) - l4, 0, 6)
    struct.pack_into("!H", raw, l4 + 16, ~checksum(pseudo) & 0xFFFF)
    return struct.pack("=BBHHHH", 1, 4 if six else 1, l4 + 20, MSS, l4, 16) + bytes(raw)


@pytest.fixture(params=[_four, _six, _six_with_the_option], ids=lambda wrap: wrap.__name__)
def wrap(request: pytest.FixtureRequest) -> Wrap:
    found: Wrap = request.param
    return found


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.pair()
        yield made


def test_both_vms_get_it(rig: Rig, wrap: Wrap) -> None:
    """As found: dropped as malformed; the client sent it again and again, in smaller pieces."""
    rig.to_first_nic_vnet(_big(wrap))
    assert payload(rig.to_vm()) == DATA
    assert payload(frame for _, frame in rig.to_peer()) == DATA
    assert rig.count("mir-cli", "pass", "input") == 1, "it was one frame there"


def test_what_it_acknowledges_is_known(rig: Rig) -> None:
    """The client's ACK tells which of the SVM's retransmissions say that it missed an input."""
    rig.to_first_nic(bytes(request(5000, flags="S")))
    rig.to_first_nic_vnet(_big(_four))
    assert rig.flow().c_ack == 1001


def test_its_numbers_are_translated_after_a_takeover(secondary: Rig) -> None:
    """As found: what a survivor could not read went to its VM with the dead VM's numbers."""
    secondary.from_peer(request(5000, flags="S"), 3)
    secondary.from_vm(segment(1000 + SKEW, ack=5001, flags="SA"))
    secondary.from_peer(request(5001, ack=1001), 3)
    secondary.plane.keep_offsets(3)
    secondary.plane.set_mode(Mode.SOLO)
    secondary.to_vm()
    secondary.to_first_nic_vnet(_big(_four))
    frames = secondary.to_vm()
    assert payload(frames) == DATA
    assert {frame[TCP].ack for frame in frames} == {1001 + SKEW}
    assert all(sums_are_right(frame) for frame in frames)


def test_lasting_numbers_too(rig: Rig) -> None:
    key = abi.FlowKey(vm_port=socket.htons(80), client_port=socket.htons(4711))
    for side, address in ((key.vm, VM), (key.client, CLIENT)):
        side[2] = socket.htonl(0xFFFF)
        side[3] = int.from_bytes(socket.inet_aton(address), sys.byteorder)
    rig.plane.learn_offsets([bytes(key) + struct.pack("!II", SKEW, 0)])
    rig.to_first_nic_vnet(_big(_four))
    for frames in (rig.to_vm(), [frame for _, frame in rig.to_peer()]):
        assert payload(frames) == DATA
        assert {frame[TCP].ack for frame in frames} == {1001 + SKEW}


@pytest.mark.parametrize("data", [b"", b"hello"])
def test_a_length_of_nothing_in_a_frame_that_is_not_to_be_cut_is_a_lie(
    rig: Rig, wrap: Wrap, data: bytes
) -> None:
    rig.to_first_nic(bytes(wrap(_segment(data))))
    assert rig.to_vm() == []
    assert rig.count("mir-cli", "drop", "malformed") == 1
