# SPDX-License-Identifier: GPL-2.0-only
"""What IPsec is to do for one VM's link, in the words of `ip xfrm` (ip-xfrm(8)). Pure.

The ports of the VM select its traffic: frames, memory and disk in both roles. What goes out by them
has to be sealed (ESP in transport mode, AES-256-GCM, RFC 4106), what comes in has to have been; to
anybody but the peer the ports are closed, whichever device he comes by. Heartbeats are not among
them: they are sealed by the daemons, who agree on the keys by them. Each VM has states of its own,
told apart by their request id: nothing is shared by daemons.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from colo_ebpf import addresses

KEY_BYTES = 36  # of AES-256, and four of the nonce
LEAST_SPI, LARGEST_SPI = 0x100, 0xFFFF_FFFF  # those below are reserved (RFC 4303)
_TCP, _UDP = int(socket.IPPROTO_TCP), int(socket.IPPROTO_UDP)
_REPLAY_WINDOW = 1024  # packets: several CPUs send, and several queues receive
_SEALED, _CLOSED = 1000, 2000  # priorities: what is lower counts first
_ESP_HEAD_BYTES, _ESP_TAG_BYTES, _ESP_TRAILER_BYTES = 16, 16, 2  # with the IV; padding and type
_STATE = re.compile(r"^src (\S+) dst (\S+)\s+proto esp spi (0x[0-9a-f]+) reqid (\d+)", re.M)
_POLICY = re.compile(
    r"^src (\S+) dst (\S+) proto (\S+)(?: sport (\d+))?(?: dport (\d+))? \s*dir (in|out)", re.M
)
_PROTOCOLS = {"tcp": _TCP, "udp": _UDP}  # as printed where /etc/protocols is


@dataclass(frozen=True, slots=True)
class LinkEnds:
    """Addresses of the link, and the ports of one VM on it, alike on both hosts."""

    vm: str
    local: str
    peer: str
    udp_port: int  # of the frames
    tcp_ports: tuple[int, ...]  # of memory and disk

    @property
    def request_id(self) -> int:
        """Of this VM's states and policies: 31 bits, never 0."""
        digest = hashlib.blake2b(self.vm.encode(), digest_size=4).digest()
        return int.from_bytes(digest) >> 1 | 1 << 24


@dataclass(frozen=True, slots=True)
class FramesPort:
    """Where frames come to that another tunnel seals: the port takes what is sent from `peer` to
    `local`, both of which that tunnel alone carries, and nothing else."""

    local: str
    peer: str
    udp_port: int


Ends = LinkEnds | FramesPort


@dataclass(frozen=True, slots=True)
class Selector:
    """What one policy is for; a port of 0 is any."""

    direction: str  # in, out
    source: str
    destination: str
    protocol: int
    source_port: int
    destination_port: int

    def __str__(self) -> str:
        ports = f"{_port('sport', self.source_port)}{_port('dport', self.destination_port)}"
        return (
            f"src {self.source} dst {self.destination} proto {self.protocol}{ports}"
            f" dir {self.direction}"
        )


def _port(name: str, number: int) -> str:
    return f" {name} {number}" if number else ""


def _host(address: str) -> str:
    """As `ip` prints a single one."""
    return f"{address}/{ipaddress.ip_address(address).max_prefixlen}"


def _anybody(address: str) -> str:
    return "::/0" if addresses.family(address) is socket.AF_INET6 else "0.0.0.0/0"


def sealed(ends: LinkEnds) -> Iterator[Selector]:
    """What passes between the hosts sealed, or not at all."""
    here, there = _host(ends.local), _host(ends.peer)
    ways = (("out", here, there), ("in", there, here))
    for way in ways:
        yield Selector(*way, _UDP, 0, ends.udp_port)
        for port in ends.tcp_ports:
            yield Selector(*way, _TCP, 0, port)
            yield Selector(*way, _TCP, port, 0)


def closed(ends: LinkEnds) -> Iterator[Selector]:
    """What nobody else may send."""
    anybody, here = _anybody(ends.local), _host(ends.local)
    yield Selector("in", anybody, here, _UDP, 0, ends.udp_port)
    for port in ends.tcp_ports:
        yield Selector("in", anybody, here, _TCP, 0, port)


def _tunnelled(port: FramesPort) -> Selector:
    """What may come to it."""
    return Selector("in", _host(port.peer), _host(port.local), _UDP, 0, port.udp_port)


def _elsewhere(port: FramesPort) -> Iterator[Selector]:
    """All else that might."""
    for anybody in ("0.0.0.0/0", "::/0"):
        yield Selector("in", anybody, anybody, _UDP, 0, port.udp_port)


def selectors(ends: Ends) -> set[Selector]:
    """Of all policies."""
    if isinstance(ends, FramesPort):
        return {_tunnelled(ends), *_elsewhere(ends)}
    return {*sealed(ends), *closed(ends)}


def require(ends: Ends) -> Iterator[str]:
    """Commands that make all policies, or make them again."""
    if isinstance(ends, FramesPort):
        yield f"xfrm policy update {_tunnelled(ends)} action allow priority {_SEALED}"
        for one in _elsewhere(ends):
            yield f"xfrm policy update {one} action block priority {_CLOSED}"
        return
    for one in sealed(ends):
        out = one.direction == "out"
        source, destination = (ends.local, ends.peer) if out else (ends.peer, ends.local)
        yield (
            f"xfrm policy update {one} priority {_SEALED} tmpl src {source} dst {destination}"
            f" proto esp reqid {ends.request_id} mode transport"
        )
    for one in closed(ends):
        yield f"xfrm policy update {one} action block priority {_CLOSED}"


def drop_policy(one: Selector) -> str:
    """The command that removes a policy."""
    return f"xfrm policy delete {one}"


def add_state(ends: LinkEnds, *, inbound: bool, spi: int, key: bytes) -> str:
    """The command that makes a state: what comes with this SPI is opened, or goes out sealed."""
    source, destination = (ends.peer, ends.local) if inbound else (ends.local, ends.peer)
    return (
        f"xfrm state add src {source} dst {destination} proto esp spi {spi:#x}"
        f" reqid {ends.request_id} mode transport replay-window {_REPLAY_WINDOW} flag esn"
        f" aead rfc4106(gcm(aes)) 0x{key.hex()} 128"
    )


def drop_state(ends: LinkEnds, *, inbound: bool, spi: int) -> str:
    """The command that removes a state."""
    source, destination = (ends.peer, ends.local) if inbound else (ends.local, ends.peer)
    return f"xfrm state delete src {source} dst {destination} proto esp spi {spi:#x}"


def spis(ends: LinkEnds, listed: str, *, inbound: bool) -> set[int]:
    """SPIs of this VM's states one way, of what `ip xfrm state list` printed."""
    wanted = (ends.peer, ends.local) if inbound else (ends.local, ends.peer)
    return {
        int(spi, 16)
        for source, destination, spi, request_id in _STATE.findall(listed)
        if (source, destination) == wanted and int(request_id) == ends.request_id
    }


def policies(listed: str) -> set[Selector]:
    """Of what `ip xfrm policy list` printed, those that are for ports."""
    found = set()
    for source, destination, protocol, sport, dport, direction in _POLICY.findall(listed):
        number = int(protocol) if protocol.isdigit() else _PROTOCOLS.get(protocol)
        if number is not None:
            ports = int(sport or 0), int(dport or 0)
            found.add(Selector(direction, source, destination, number, *ports))
    return found


def needed_mtu(packet_bytes: int, address: str) -> int:
    """The least MTU of a device through which a sealed packet of this size goes whole.

    As the kernel reckons in xfrm_state_mtu: the payload is padded to words of four bytes.
    """
    ip_bytes = 40 if addresses.family(address) is socket.AF_INET6 else 20
    payload = packet_bytes - ip_bytes + _ESP_TRAILER_BYTES
    return -(-payload // 4) * 4 + ip_bytes + _ESP_HEAD_BYTES + _ESP_TAG_BYTES
