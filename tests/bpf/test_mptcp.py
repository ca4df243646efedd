# SPDX-License-Identifier: GPL-2.0-only
"""Multipath TCP: no VM hears that the other end offers it, so that both speak plain TCP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from colo_ebpf.lab.frames import CLIENT, VM
from colo_ebpf.model import Mode
from tests.bpf.frames import segment, sums_are_right
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig

MPTCP, IGNORED = 30, 253
CAPABLE = (MPTCP, b"\x01\x00")
JOIN = (MPTCP, b"\x10\x00" + bytes(range(8)))
MSS, SCALE = ("MSS", 1460), ("WScale", 7)
FOUR = Ether(src=CLIENT_MAC, dst=VM_MAC) / IP(src=CLIENT, dst=VM)
SIX = Ether(src=CLIENT_MAC, dst=VM_MAC) / IPv6(src="2001:db8::1", dst="2001:db8::10")


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.pair()
        yield made


def _opens(ip: Packet, options: list[tuple[object, object]], flags: str = "S") -> Packet:
    return ip / TCP(sport=4711, dport=80, seq=5000, ack=1001, flags=flags, options=options)


@pytest.mark.parametrize("flags", ["S", "SA"])
@pytest.mark.parametrize("ip", [FOUR, SIX])
@pytest.mark.parametrize(
    "options",
    [
        [MSS, CAPABLE],
        [MSS, ("NOP", None), CAPABLE, SCALE],
        [("NOP", None), JOIN, MSS],
        [CAPABLE, MSS, ("NOP", None), JOIN],
    ],
)
def test_what_opens_a_connection_offers_none(
    rig: Rig, options: list[tuple[object, object]], ip: Packet, flags: str
) -> None:
    rig.to_first_nic(bytes(_opens(ip, options, flags)))
    frames = rig.to_vm() + [frame for _, frame in rig.to_peer()]
    wanted = [(IGNORED if kind == MPTCP else kind, value) for kind, value in options]
    assert [frame[TCP].options[: len(wanted)] for frame in frames] == [wanted] * 2
    assert all(sums_are_right(frame) for frame in frames)


def test_so_it_is_where_a_vm_serves_alone(rig: Rig) -> None:
    """Or a subflow that joins once it is protected would meet two nonces."""
    rig.plane.set_mode(Mode.SOLO)
    rig.to_first_nic(bytes(_opens(FOUR, [MSS, CAPABLE])))
    (frame,) = rig.to_vm()
    assert frame[TCP].options[:2] == [MSS, (IGNORED, CAPABLE[1])]


def test_nothing_else_is_touched(rig: Rig) -> None:
    """A connection that is older than the pair goes on as it began."""
    data = _opens(FOUR, [(MPTCP, b"\x20\x01" + bytes(6))], "A") / b"hello"
    plain = _opens(FOUR, [MSS, ("SAckOK", b""), ("Timestamp", (7, 0)), ("NOP", None), SCALE])
    lie = _opens(FOUR, [(MPTCP, b"")])
    for frame in (data, plain):
        rig.to_first_nic(bytes(frame))
        assert [bytes(got) for got in rig.to_vm()] == [bytes(frame)]
    raw = bytearray(bytes(lie))
    raw[55] = 0  # of the option, which is no length
    rig.to_first_nic(bytes(raw))
    assert [bytes(got) for got in rig.to_vm()] == [bytes(raw)]


def test_what_a_vm_offers_leaves_as_it_is(rig: Rig) -> None:
    """The other end may answer with it; the VM does not hear of that."""
    frame = segment(1000, flags="S", options=[MSS, CAPABLE])
    rig.from_vm(frame)
    rig.from_peer(segment(71000, flags="S", options=[MSS, CAPABLE]), 1)
    assert [got[TCP].options for got in rig.to_client()] == [frame[TCP].options]
