# SPDX-License-Identifier: GPL-2.0-only
"""The headers in which a VM's segment may come."""

from __future__ import annotations

from collections.abc import Callable

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from colo_ebpf.lab.frames import CLIENT, VM
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig

VM6, CLIENT6 = "2001:db8::10", "2001:db8::1"
Wrap = Callable[[Packet], Packet]


def ether() -> Packet:
    """The VM to the client."""
    return Ether(src=VM_MAC, dst=CLIENT_MAC)


def tcp(seq: int, data: bytes = b"", flags: str = "A", ack: int = 5001) -> Packet:
    """A segment of the VM's."""
    window = 1000
    return TCP(sport=80, dport=4711, seq=seq, ack=ack, flags=flags, window=window) / data


def plain6(packet: Packet) -> Packet:
    """IPv6."""
    return ether() / IPv6(src=VM6, dst=CLIENT6) / packet


def options6(packet: Packet) -> Packet:
    """IPv6 with two extension headers."""
    ip = IPv6(src=VM6, dst=CLIENT6)
    return ether() / ip / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / packet


def plain4(packet: Packet) -> Packet:
    """IPv4."""
    return ether() / IP(src=VM, dst=CLIENT) / packet


def options4(packet: Packet) -> Packet:
    """IPv4 with an option."""
    return ether() / IP(src=VM, dst=CLIENT, options=[b"\x94\x04\x00\x00"]) / packet


def tagged(packet: Packet) -> Packet:
    """IPv4 in a VLAN."""
    return ether() / Dot1Q(vlan=7) / IP(src=VM, dst=CLIENT) / packet


def tagged6(packet: Packet) -> Packet:
    """IPv6 in a VLAN."""
    return ether() / Dot1Q(vlan=7, prio=3) / IPv6(src=VM6, dst=CLIENT6) / packet


def tagged_twice(packet: Packet) -> Packet:
    """IPv4 in a VLAN of a service tag."""
    return ether() / Dot1AD(vlan=7) / Dot1Q(vlan=12) / IP(src=VM, dst=CLIENT) / packet


WRAPS = [plain4, options4, plain6, options6, tagged, tagged6, tagged_twice]


def both_connect(rig: Rig, wrap: Wrap) -> None:
    """A connection that both VMs have accepted; the first byte is number 1001."""
    rig.pair()
    rig.from_vm(wrap(tcp(1000, flags="SA")))
    rig.from_peer(wrap(tcp(71000, flags="SA")), 1)
    assert [f[TCP].flags for f in rig.to_client()] == ["SA"]
