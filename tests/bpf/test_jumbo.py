# SPDX-License-Identifier: GPL-2.0-only
"""A NIC with an MTU of 9000: every way a frame may leave, in frames of that size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from colo_ebpf.lab.frames import CLIENT, VM
from colo_ebpf.model import Mode, Phase, VmRole
from tests.bpf.frames import payload, stream, sums_are_right
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig
from tests.capabilities import require

MTU = 9000
DATA = stream(60_000)
Wrap = Callable[[Packet], Packet]


def _four(packet: Packet) -> Packet:
    return Ether(src=VM_MAC, dst=CLIENT_MAC) / IP(src=VM, dst=CLIENT) / packet


def _six(packet: Packet) -> Packet:
    return Ether(src=VM_MAC, dst=CLIENT_MAC) / IPv6(src="2001:db8::10", dst="2001:db8::1") / packet


def _tagged(packet: Packet) -> Packet:
    return Ether(src=VM_MAC, dst=CLIENT_MAC) / Dot1Q(vlan=7) / IP(src=VM, dst=CLIENT) / packet


WRAPS = {_four: MTU - 40, _six: MTU - 60, _tagged: MTU - 40}


def _tcp(seq: int, data: bytes = b"", flags: str = "A") -> Packet:
    return TCP(sport=80, dport=4711, seq=seq, ack=5001, window=1000, flags=flags) / data


def _udp(data: bytes) -> Packet:
    return UDP(sport=7, dport=9) / data


def _connect(rig: Rig, wrap: Wrap) -> None:
    rig.pair()
    rig.from_vm(wrap(_tcp(1000, flags="SA")))
    rig.from_peer(wrap(_tcp(1000, flags="SA")), 1)
    assert len(rig.to_client()) == 1


@pytest.fixture(params=list(WRAPS), ids=lambda wrap: wrap.__name__.strip("_"))
def wrap(request: pytest.FixtureRequest) -> Wrap:
    found: Wrap = request.param
    return found


@pytest.fixture
def rig(wrap: Wrap) -> Iterator[Rig]:
    """A connection that both VMs have accepted."""
    require("root", "bpf")
    with Rig(mtu=MTU) as made:
        _connect(made, wrap)
        yield made


def test_what_a_checkpoint_contains_leaves_by_the_flush(rig: Rig, wrap: Wrap) -> None:
    most = WRAPS[wrap]
    rig.plane.set_turn(1, Phase.TURNING)
    rig.from_vm(wrap(_tcp(1001, DATA[:most])))
    rig.from_vm_offloaded(wrap(_tcp(1001 + most, DATA[most:])), most)
    rig.from_vm(wrap(_udp(DATA[: most + 12])))
    rig.plane.set_turn(2, Phase.OPEN)
    assert rig.plane.flush().left == 0
    frames = rig.to_client()
    assert payload(frame for frame in frames if TCP in frame) == DATA
    assert [bytes(frame[UDP].payload) for frame in frames if UDP in frame] == [DATA[: most + 12]]
    assert max(len(frame) for frame in frames) - 4 * (Dot1Q in frames[0]) == MTU + 14
    assert all(sums_are_right(frame) for frame in frames)


@pytest.mark.parametrize("piece", [100, 1448, 8000])
def test_a_frame_of_any_length_carries_it_out(rig: Rig, wrap: Wrap, piece: int) -> None:
    most = WRAPS[wrap]
    rig.from_vm(wrap(_tcp(1001, DATA[:most])))
    assert rig.to_client() == []
    for start in range(0, most, piece):
        rig.from_peer(wrap(_tcp(1001 + start, DATA[start : min(start + piece, most)])), 1)
    frames = rig.to_client()
    assert payload(frames) == DATA[:most]
    assert all(sums_are_right(frame) for frame in frames)
    assert rig.plane.held().frames == 0


def test_a_difference_in_its_last_byte_lets_nothing_of_it_out(rig: Rig, wrap: Wrap) -> None:
    most = WRAPS[wrap]
    rig.from_vm(wrap(_tcp(1001, DATA[:most])))
    other = bytes([DATA[most - 1] ^ 1])
    rig.from_peer(wrap(_tcp(1001, DATA[: most - 1] + other)), 1)
    assert rig.to_client() == []
    assert "mismatch" in rig.events()


def test_the_verified_part_leaves_where_one_vm_resends(rig: Rig, wrap: Wrap) -> None:
    """No end of the one's segments is one of the other's: the bytes are compared."""
    most = WRAPS[wrap]
    rig.from_vm(wrap(_tcp(1001, DATA[:most])))
    rig.from_peer(wrap(_tcp(1001, DATA[:4000])), 1)
    rig.from_peer(wrap(_tcp(1001, DATA[:7002])), 1)
    assert payload(rig.to_client()) == DATA[:7000], "whole words"


def test_a_jumbo_datagram_that_one_vm_alone_says_never_leaves(rig: Rig, wrap: Wrap) -> None:
    rig.from_vm(wrap(_udp(DATA[:8900])))
    rig.from_peer(wrap(_udp(DATA[:8899] + b"?")), 1)
    assert rig.to_client() == []


def test_the_svms_large_frame_leaves_for_the_row() -> None:
    require("root", "bpf")
    with Rig(mtu=MTU, large=True) as rig:
        rig.let_the_wire_cut(True)
        _connect(rig, _four)
        most = WRAPS[_four]
        rig.from_vm_offloaded(_four(_tcp(1001, DATA)), most)
        rig.from_peer_offloaded(_four(_tcp(1001, DATA)), most)
        frames = rig.to_client()
        assert payload(frames) == DATA
        assert all(sums_are_right(frame) for frame in frames)
        assert max(len(frame) for frame in frames) == MTU + 14
        assert rig.count("drain", "carry", "whole") == 1


def test_the_link_and_the_vm_get_what_a_client_sends() -> None:
    require("root", "bpf")
    with Rig(mtu=MTU) as rig:
        rig.pair()
        frame = Ether(src=CLIENT_MAC, dst=VM_MAC) / IP(src=CLIENT, dst=VM) / _udp(DATA[: MTU - 28])
        rig.from_client(frame)
        assert [bytes(got) for got in rig.to_vm()] == [bytes(frame)]


def test_what_the_svm_said_last_leaves_when_it_serves_alone() -> None:
    require("root", "bpf")
    with Rig(VmRole.SECONDARY, mtu=MTU) as rig:
        rig.pair(3, Mode.SECONDARY)
        most = WRAPS[_four]
        rig.from_vm(_four(_tcp(1001, DATA[:most])))
        assert [len(frame) for _, frame in rig.to_peer()] == [MTU + 14]
        rig.plane.keep_offsets(3)
        rig.plane.set_turn(0, Phase.OPEN)
        rig.plane.set_mode(Mode.SOLO)
        assert rig.plane.repeat() == 1
        assert payload(rig.to_client()) == DATA[:most]
