# SPDX-License-Identifier: GPL-2.0-only
"""What the family of the link's addresses is to the tunnel between the planes. Pure."""

from __future__ import annotations

import enum
import ipaddress
import socket
import struct

from colo_ebpf import addresses
from colo_ebpf.datapath.net import ipsec


class Security(enum.Enum):
    """What seals the link. The values are the configuration's."""

    NONE = "none"
    IPSEC = "ipsec"
    WIREGUARD = "wireguard"


_IPV6 = 1  # BPF_F_TUNINFO_IPV6

# Of the tunnel, outer Ethernet not counted: IPv4 20 or IPv6 40, UDP 8, VXLAN 8, inner Ethernet 14.
_OVERHEAD_BYTES = {socket.AF_INET: 50, socket.AF_INET6: 70}


def overhead_bytes(address: str) -> int:
    """What the tunnel adds to the guest's packets."""
    return _OVERHEAD_BYTES[addresses.family(address)]


def needed_mtu(guest_mtu: int, address: str, *, sealed: bool) -> int:
    """The least that the device below the tunnel has to have."""
    packet = guest_mtu + overhead_bytes(address)
    return ipsec.needed_mtu(packet, address) if sealed else packet


def flags(address: str) -> int:
    """As the helpers that read and write a frame's tunnel key want them."""
    return _IPV6 if addresses.family(address) is socket.AF_INET6 else 0


def words(address: str) -> tuple[int, ...]:
    """Four, as ``struct bpf_tunnel_key`` has an address: IPv4 in the host's byte order in the
    first, IPv6 in the network's."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        return int(parsed), 0, 0, 0
    return struct.unpack("=4I", parsed.packed)
