# SPDX-License-Identifier: GPL-2.0-only
"""Frames of a plane's, as somebody makes them who is not the peer; and what passes by."""

from __future__ import annotations

import socket
import struct
from typing import Any

from colo_ebpf.datapath.net import netdev
from colo_ebpf.lab.checksum import checksum
from tests.link.wires import eventually

FRAMES_PORT, WIREGUARD_PORT, VNI = 20_001, 28_001, 7


def vxlan_packet(source: str, destination: str, payload: bytes) -> bytes:
    """An IP packet, as the peer's plane would send it outside a tunnel."""
    inner_udp = struct.pack("!HHHH", 7000, 7000, 8 + len(payload), 0) + payload
    inner = _ipv4("192.168.9.1", "192.168.9.2", inner_udp)
    macs = bytes.fromhex("020000000002020000000001")
    vxlan = struct.pack("!II", 0x0800_0000, VNI << 8) + macs + b"\x08\x00" + inner
    udp = struct.pack("!HHHH", 4000, FRAMES_PORT, 8 + len(vxlan), 0) + vxlan
    if ":" not in destination:
        return b"\x08\x00" + _ipv4(source, destination, udp)
    pack = [socket.inet_pton(socket.AF_INET6, one) for one in (source, destination)]
    return b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + b"".join(pack) + udp


def _ipv4(source: str, destination: str, udp: bytes) -> bytes:
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp


def is_of_the_tunnel(frame: bytes) -> bool:
    """UDP to WireGuard's port, of IPv4 or IPv6."""
    kind = frame[12:14]
    at = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(kind)
    return at is not None and frame[at + 2 : at + 4] == WIREGUARD_PORT.to_bytes(2)


def wait_for_more(got: list[bytes]) -> None:
    so_far = len(got)
    assert eventually(lambda: len(got) > so_far + 100)


def received(host: Any) -> int:
    """Frames of the data plane, so far."""

    def read() -> int:
        stats = netdev.link_of("vx0").get_attr("IFLA_STATS64")
        return int(stats["rx_packets"])

    return host.inside(read)
