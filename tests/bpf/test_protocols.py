# SPDX-License-Identifier: GPL-2.0-only
"""Every protocol and shape of frame a VM may send, on real hooks."""

from __future__ import annotations

import pytest
from scapy.contrib.igmp import IGMP
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from colo_ebpf.lab.frames import CLIENT, VM
from colo_ebpf.model import Phase
from tests.bpf.frames import payload, request, segment, stream, sums_are_right
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig, established
from tests.bpf.wraps import (
    CLIENT6,
    VM6,
    WRAPS,
    Wrap,
    both_connect,
    ether,
    options4,
    plain4,
    plain6,
    tagged,
    tagged6,
    tagged_twice,
    tcp,
)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("pvm_first", [True, False])
def test_a_stream_is_compared_held_and_released(wrap: Wrap, pvm_first: bool) -> None:
    with Rig() as rig:
        both_connect(rig, wrap)
        whole = bytes(range(256)) * 5
        pvm = [wrap(tcp(1001, whole[:700])), wrap(tcp(1701, whole[700:], flags="PA"))]
        svm = [wrap(tcp(1001, whole[:301])), wrap(tcp(1302, whole[301:]))]
        sides = [(rig.from_vm, pvm), (lambda f: rig.from_peer(f, 1), svm)]
        for send, frames in sides if pvm_first else reversed(sides):
            for frame in frames:
                send(frame)
        assert [bytes(f) for f in rig.to_client()] == [bytes(f) for f in pvm]
        assert rig.plane.held().frames == 0


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_stream_that_differs_is_held(wrap: Wrap) -> None:
    with Rig() as rig:
        both_connect(rig, wrap)
        rig.from_vm(wrap(tcp(1001, b"you are #1")))
        rig.from_peer(wrap(tcp(1001, b"you are #2")), 1)
        assert rig.to_client() == []
        assert len(rig.plane.mismatches()) == 1


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("packet", [UDP(sport=7, dport=9) / b"pong", Raw(b"x" * 64)])
def test_datagrams_are_compared(wrap: Wrap, packet: Packet) -> None:
    with Rig() as rig:
        rig.pair()
        sent = wrap(packet)
        if Raw in sent and UDP not in sent:
            sent[IPv6 if IPv6 in sent else IP].fields["nh" if IPv6 in sent else "proto"] = 132
            sent = Ether(bytes(sent))
        rig.from_vm(sent)
        assert rig.to_client() == []
        rig.from_peer(sent, 1)
        assert [bytes(f) for f in rig.to_client()] == [bytes(sent)]
        rig.from_peer(sent, 1)
        rig.from_vm(sent)
        assert [bytes(f) for f in rig.to_client()] == [bytes(sent)]


def test_one_flow_in_two_vlans_is_two_flows() -> None:
    with Rig() as rig:
        both_connect(rig, tagged)
        rig.from_peer(plain4(tcp(1001, b"equal")), 1)
        rig.from_vm(tagged(tcp(1001, b"equal")))
        assert rig.to_client() == []
        udp = UDP(sport=7, dport=9) / b"pong"
        rig.from_peer(tagged_twice(udp), 1)
        rig.from_vm(tagged(udp))
        assert rig.to_client() == []


def test_what_one_nic_says_verifies_nothing_on_another() -> None:
    with Rig() as rig:
        rig.pair()
        udp = plain4(UDP(sport=7, dport=9) / b"pong")
        rig.from_second_nic(udp)
        rig.from_peer(udp, 1)
        assert rig.to_client() == []
        rig.from_peer(udp, 1, nic=1)
        assert rig.to_client() == [], "the other NIC has clients of its own"
        assert rig.count("cmp-pvm", "pass", "released") == 1


def test_a_second_nics_input_says_so_on_the_link() -> None:
    with Rig() as rig:
        rig.pair()
        rig.to_peer()
        rig.to_second_nic(request(1, b"ping"))
        assert rig.to_peer_ids() == [rig.vxlan_id(1)]


@pytest.mark.parametrize(
    "reply",
    [
        plain6(ICMPv6EchoReply(id=1, seq=2, data=b"ping")),
        plain4(ICMP(type=0, id=1, seq=2) / b"ping"),
        ether() / IP(src=VM, dst=CLIENT, proto=47) / b"gre",
        plain6(IPv6ExtHdrRouting(addresses=[CLIENT6]) / UDP(sport=7, dport=9) / b"routed"),
        Ether(src=VM_MAC, dst=CLIENT_MAC, type=0x88B8) / (b"goose" + bytes(50)),
        ether() / Dot1Q(vlan=3) / Dot1Q(vlan=4) / Dot1Q(vlan=5) / IP(src=VM, dst=CLIENT) / b"deep",
    ],
    ids=["icmp6", "icmp", "gre", "routing-header", "ethertype", "three-tags"],
)
def test_nothing_else_leaves_uncompared(reply: Packet) -> None:
    with Rig() as rig:
        rig.pair()
        rig.from_vm(reply)
        assert rig.to_client() == []
        rig.from_peer(reply, 1)
        assert [bytes(f) for f in rig.to_client()] == [bytes(reply)]


@pytest.mark.parametrize(
    "word",
    [
        ether() / ARP(op=2, psrc=VM),
        plain6(ICMPv6ND_NA(tgt=VM6)),
        ether() / IPv6(src="fe80::1", dst="ff02::16") / IPv6ExtHdrHopByHop() / ICMPv6MLReport2(),
        ether() / IP(src=VM, dst="224.0.0.22", proto=2) / IGMP(type=0x16, gaddr="239.1.2.3"),
        Ether(src=VM_MAC, dst="01:80:c2:00:00:0e", type=0x88CC) / bytes(46),
        Ether(src=VM_MAC, dst="01:80:c2:00:00:00", type=38) / bytes(46),
        Ether(src=VM_MAC, dst="ff:ff:ff:ff:ff:ff", type=0x8035) / bytes(46),
    ],
    ids=["arp", "nd", "mld", "igmp", "lldp", "llc", "rarp"],
)
def test_neighbours_are_told_under_the_link_heard_rule(word: Packet) -> None:
    with Rig() as rig:
        rig.pair()
        rig.from_vm(word)
        assert rig.count("cmp-pvm", "pass", "neighbour") == 1
        rig.from_peer(word, 1)
        assert rig.count("cmp-svm", "drop", "neighbour") == 1
        rig.silence()
        rig.from_vm(word)
        assert rig.count("cmp-pvm", "drop", "link-silent") == 1


def test_fragments_are_compared_where_they_belong() -> None:
    with Rig() as rig:
        rig.pair()
        whole = IP(src=VM, dst=CLIENT, id=7) / UDP(sport=7, dport=9) / (b"12345678" * 300)
        first, *rest = [ether() / part for part in fragment(whole, 800)]
        same = first.copy()
        same[IP].frag = 100
        same[IP].chksum = None
        rig.from_vm(first)
        rig.from_peer(Ether(bytes(same)), 1)
        assert rig.to_client() == []
        for part in (first, *rest):
            other = part.copy()
            other[IP].id = 99  # each VM numbers its own
            other[IP].chksum = None
            rig.from_peer(Ether(bytes(other)), 1)
        for part in rest:
            rig.from_vm(part)
        assert [bytes(f) for f in rig.to_client()] == [bytes(f) for f in (first, *rest)]


def test_fragments_of_ipv6_too() -> None:
    with Rig() as rig:
        rig.pair()

        def part(offset: int, ident: int) -> Packet:
            return plain6(IPv6ExtHdrFragment(nh=17, offset=offset, m=1, id=ident) / (b"x" * 64))

        rig.from_vm(part(0, 1))
        rig.from_peer(part(8, 2), 1)
        assert rig.to_client() == []
        rig.from_peer(part(0, 2), 1)
        assert [bytes(f) for f in rig.to_client()] == [bytes(part(0, 1))]


# --- offloads -------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [plain4, options4, plain6, tagged, tagged6])
def test_a_checksum_left_to_the_nic_is_made_before_a_frame_is_held(wrap: Wrap) -> None:
    with Rig() as rig:
        both_connect(rig, wrap)
        for packet in (tcp(1001, b"odd"), UDP(sport=7, dport=9) / b"pong"):
            rig.from_vm_offloaded(wrap(packet))
            rig.from_peer(wrap(packet), 1)
        assert [bytes(f) for f in rig.to_client()] == [
            bytes(wrap(tcp(1001, b"odd"))),
            bytes(wrap(UDP(sport=7, dport=9) / b"pong")),
        ]


def test_a_udp_datagram_without_checksum_keeps_none() -> None:
    with Rig() as rig:
        rig.pair()
        sent = plain4(UDP(sport=7, dport=9, chksum=0) / b"pong")
        rig.from_vm(sent)
        rig.from_peer(sent, 1)
        assert [bytes(f) for f in rig.to_client()] == [bytes(sent)]


@pytest.mark.parametrize("wrap", [plain4, options4, plain6, tagged])
@pytest.mark.parametrize("size", [1449, 2896, 30000, 65000])
def test_a_gso_frame_is_held_as_the_frames_it_stands_for(wrap: Wrap, size: int) -> None:
    data, most = stream(size), 1428 if wrap is plain6 else 1448
    with Rig() as rig:
        both_connect(rig, wrap)
        rig.from_vm_offloaded(wrap(tcp(1001, data, flags="PAF")), most)
        assert rig.to_client() == []
        starts = range(0, size, most)
        assert rig.plane.held().frames == len(starts)
        for start in range(0, size, 1000):
            last = start + 1000 >= size
            chunk = tcp(1001 + start, data[start : start + 1000], flags="AF" if last else "A")
            rig.from_peer(wrap(chunk), 1)
        frames = rig.to_client()
        assert [f[TCP].seq - 1001 for f in frames] == list(starts)
        assert b"".join(bytes(f[TCP].payload) for f in frames) == data
        assert {str(f[TCP].flags) for f in frames[:-1]} == {"A"}
        assert str(frames[-1][TCP].flags) == "FPA"
        assert all(sums_are_right(f) for f in frames)


def test_a_gso_frame_that_is_verified_passes_whole() -> None:
    data = stream(20000)
    with Rig() as rig:
        both_connect(rig, plain4)
        for start in range(0, 20000, 1448):
            rig.from_peer(plain4(tcp(1001 + start, data[start : start + 1448])), 1)
        rig.from_vm_offloaded(plain4(tcp(1001, data)), 1448)
        assert b"".join(bytes(f[TCP].payload) for f in rig.to_client()) == data
        assert rig.count("cmp-pvm", "pass", "verified") == 1


def test_the_verified_part_of_a_gso_frame_leaves_at_once() -> None:
    data = stream(20000)
    with Rig() as rig:
        both_connect(rig, plain4)
        for start in range(0, 5792, 1448):
            rig.from_peer(plain4(tcp(1001 + start, data[start : start + 1448])), 1)
        rig.from_vm_offloaded(plain4(tcp(1001, data)), 1448)
        assert sum(len(f[TCP].payload) for f in rig.to_client()) == 5792
        assert rig.plane.held().frames == 14 - 4
        rig.from_vm_offloaded(plain4(tcp(1001, data)), 1448)
        assert payload(rig.to_client()) == data[:1448], "it may be lost"
        assert rig.plane.held().frames == 14 - 4
        assert rig.count("cmp-pvm", "hold", "held-again") == 1


def test_a_difference_inside_a_gso_frame_holds_from_there() -> None:
    data = stream(10000)
    with Rig() as rig:
        both_connect(rig, plain4)
        rig.from_vm_offloaded(plain4(tcp(1001, data)), 1000)
        changed = data[:4500] + b"?" + data[4501:]
        for start in range(0, 10000, 500):
            rig.from_peer(plain4(tcp(1001 + start, changed[start : start + 500])), 1)
        assert b"".join(bytes(f[TCP].payload) for f in rig.to_client()) == data[:4000]
        assert rig.plane.held().frames == 6


def test_a_frame_of_the_svm_may_be_as_large_as_a_datagram() -> None:
    data = stream(60000)
    with Rig() as rig:
        both_connect(rig, plain4)
        for start in range(0, 60000, 1448):
            rig.from_vm(plain4(tcp(1001 + start, data[start : start + 1448])))
        rig.from_peer(plain4(tcp(1001, data)), 1)
        assert b"".join(bytes(f[TCP].payload) for f in rig.to_client()) == data


def test_more_segments_than_slots_for_one_frame() -> None:
    """What does not fit is hashed and dropped; after a checkpoint the guest's next copy passes."""
    data = stream(40000)
    with Rig() as rig:
        both_connect(rig, plain4)
        rig.from_vm_offloaded(plain4(tcp(1001, data)), 500)
        assert rig.count("cmp-pvm", "drop", "too-big") == 1
        for start in range(0, 40000, 1448):
            rig.from_peer(plain4(tcp(1001 + start, data[start : start + 1448])), 1)
        out = b"".join(bytes(f[TCP].payload) for f in rig.to_client())
        assert data.startswith(out)
        rig.plane.set_turn(2, Phase.OPEN)
        rig.from_vm_offloaded(plain4(tcp(1001, data)), 500)
        assert b"".join(bytes(f[TCP].payload) for f in rig.to_client()) == data


@pytest.mark.parametrize("wrap", [plain4, plain6])
def test_jumbo_frames(wrap: Wrap) -> None:
    data = stream(60000)
    most = 8940 if wrap is plain4 else 8900
    with Rig(mtu=9000) as rig:
        both_connect(rig, wrap)
        rig.from_vm(wrap(tcp(1001, data[:most])))
        rig.from_vm_offloaded(wrap(tcp(1001 + most, data[most:])), most)
        rig.from_vm(wrap(UDP(sport=7, dport=9) / data[:most]))
        assert rig.to_client() == []
        for start in range(0, 60000, most):
            rig.from_peer(wrap(tcp(1001 + start, data[start : start + most])), 1)
        rig.from_peer(wrap(UDP(sport=7, dport=9) / data[:most]), 1)
        frames = rig.to_client()
        assert b"".join(bytes(f[TCP].payload) for f in frames if TCP in f) == data
        assert bytes(frames[-1][UDP].payload) == data[:most]
        assert all(sums_are_right(f) for f in frames)


def test_udp_segmentation_is_not_offered_and_never_leaves() -> None:
    with established() as rig:
        rig.from_vm_offloaded_udp(plain4(UDP(sport=7, dport=9) / bytes(3000)), 1000)
        assert rig.to_client() == []
        assert rig.count("cmp-pvm", "drop", "too-big") == 1


def test_a_gso_frame_held_for_a_checkpoint_leaves_by_the_flush() -> None:
    data = stream(10000)
    with Rig() as rig:
        both_connect(rig, plain6)
        rig.plane.set_turn(1, Phase.TURNING)
        rig.from_vm_offloaded(plain6(tcp(1001, data)), 1428)
        rig.plane.set_turn(2, Phase.OPEN)
        assert rig.plane.flush().emitted == 8
        frames = rig.to_client()
        assert b"".join(bytes(f[TCP].payload) for f in frames) == data
        assert all(sums_are_right(f) for f in frames)
        rig.from_peer(plain6(tcp(11001, b"next")), 2)
        rig.from_vm(plain6(tcp(11001, b"next")))
        assert [bytes(f[TCP].payload) for f in rig.to_client()] == [b"next"]


def test_segment_is_the_frame_of_the_other_tests() -> None:
    """Options and helpers of this file and the shared ones agree on the bytes."""
    assert bytes(plain4(tcp(1001, b"x"))) == bytes(segment(1001, b"x", ack=5001))
