# SPDX-License-Identifier: GPL-2.0-only
"""Frames for the tests of the programs, and what is in those that come out."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from colo_ebpf.lab.bed import (
    BEACON,
)
from colo_ebpf.lab.checksum import checksum
from colo_ebpf.lab.frames import CLIENT, CLIENT_MAC, VM, VM_MAC


def stream(count: int) -> bytes:
    """Bytes of a VM's stream that are nowhere the same for long."""
    return bytes((i * 31 + i // 256) % 256 for i in range(count))


def offloaded(frame: Packet, segment_bytes: int) -> bytes:
    """The frame with its virtio header.

    As Linux does: the checksum field has the sum of the pseudo-header (virtio 1.2, 5.1.6).
    """
    raw = bytearray(bytes(frame))
    l3 = 14 if frame.type in (0x0800, 0x86DD) else 18
    six = raw[l3] >> 4 == 6
    l4 = l3 + (40 if six else (raw[l3] & 15) * 4)
    protocol = raw[l3 + (6 if six else 9)]
    at = 16 if protocol == 6 else 6
    ends = raw[l3 + 8 : l3 + 40] if six else raw[l3 + 12 : l3 + 20]
    pseudo = bytes(ends) + struct.pack("!HBB", len(raw) - l4, 0, protocol)
    struct.pack_into("!H", raw, l4 + at, ~checksum(pseudo) & 0xFFFF)
    kind = (4 if six else 1) if segment_bytes else 0
    head = l4 + (raw[l4 + 12] >> 4) * 4 if protocol == 6 else l4 + 8
    return struct.pack("=BBHHHH", 1, kind, head, segment_bytes, l4, at) + bytes(raw)


def payload(frames: Iterable[Packet]) -> bytes:
    """What TCP segments carry, one behind the other."""
    return b"".join(bytes(frame[TCP].payload) for frame in frames)


def sums_are_right(frame: Packet) -> bool:
    """Every checksum of the frame is the one scapy makes."""
    again = frame.copy()
    for layer in (IP, TCP, UDP, ICMP):
        if layer in again:
            del again[layer].chksum
    return bytes(Ether(bytes(again))) == bytes(frame)


def beacon() -> Packet:
    """The peer plane's sign of life."""
    return Ether(BEACON)


def farewell() -> Packet:
    """The peer plane's last word."""
    return Ether(src=VM_MAC, dst="ff:ff:ff:ff:ff:ff", type=0x88B6) / bytes(50)


def segment(
    seq: int,
    data: bytes = b"",
    ack: int = 0,
    flags: str = "A",
    window: int = 1000,
    **options: object,
) -> Packet:
    """A TCP segment of the VM."""
    return (
        Ether(src=VM_MAC, dst=CLIENT_MAC)
        / IP(src=VM, dst=CLIENT)
        / TCP(sport=80, dport=4711, seq=seq % 2**32, ack=ack, flags=flags, window=window, **options)
        / data
    )


def request(
    seq: int, data: bytes = b"", ack: int = 0, flags: str = "A", **options: object
) -> Packet:
    """A TCP segment of the client."""
    return (
        Ether(src=CLIENT_MAC, dst=VM_MAC)
        / IP(src=CLIENT, dst=VM)
        / TCP(sport=4711, dport=80, seq=seq, ack=ack, flags=flags, **options)
        / data
    )


def datagram(data: bytes, ident: int = 1) -> Packet:
    """A UDP datagram of the VM."""
    return (
        Ether(src=VM_MAC, dst=CLIENT_MAC)
        / IP(src=VM, dst=CLIENT, id=ident)
        / UDP(sport=7, dport=4712)
        / data
    )
