# SPDX-License-Identifier: GPL-2.0-only
"""Two hosts, and somebody in the middle of their link: three network namespaces.

The one in the middle has a bridge between them, sees each frame and sends what he likes.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from colo_ebpf import addresses
from colo_ebpf.control.link_seal import Between
from colo_ebpf.control.peer.key_ring import KeyRing, name_of
from colo_ebpf.control.peer.link_keys import Heard, LinkKeys
from colo_ebpf.datapath.net import bridges, namespaces, netdev, xfrm
from colo_ebpf.datapath.net.ipsec import LinkEnds

T = TypeVar("T")
KEY = b"the pair's key...."
NAME = name_of(KEY)
UDP_PORT, NBD_PORT, MIGRATION_PORT = 20_001, 20_002, 20_003
MIDDLE = "middle"
STRANGER = {"ipv4": "10.0.0.9", "ipv6": "fd00::9"}
_ADDRESSES = {"ipv4": ("10.0.0.1", "10.0.0.2", 24), "ipv6": ("fd00::1", "fd00::2", 64)}
_ETH_P_ALL, _ESP = 3, 50


def inside(namespace: str, function: Callable[[], T]) -> T:
    return namespaces.run_in(namespace, function)


@dataclass(slots=True)
class Side:
    """One host: what its daemon has agreed on, carried out in its kernel."""

    name: str
    peer: str
    ends: LinkEnds
    key: bytes = KEY
    link: LinkKeys = field(default_factory=lambda: LinkKeys("run", NAME))

    def inside(self, function: Callable[[], T]) -> T:
        return inside(self.name, function)

    def says(self) -> Heard:
        link = self.link
        return Heard(link.boot, link.offer, link.seals_with, link.sealed_with)

    def step(self, said: Heard, vni: int, now_ns: int) -> bool:
        """Hear the peer, do one thing. False: there is nothing to do."""
        self.link = self.link.heard(said, now_ns)
        action = self.link.next(said, vni, now_ns)
        if action is None:
            return False
        between = Between(self.ends, self.name, self.peer, KeyRing(self.key))
        self.inside(lambda: between.carry_out(action))
        self.link = self.link.done(action, vni, now_ns)
        return True

    def restarts(self, boot: str) -> None:
        """Its daemon: the kernel keeps what it has."""
        self.link = LinkKeys(boot, NAME)


@dataclass(slots=True)
class Link:
    """Both, and what the middle sees."""

    a: Side
    b: Side
    family: str
    now_ns: int = 0

    def agree(self, vni: int = 1) -> None:
        """Until nobody has anything to do."""
        for _ in range(20):
            did = [self.a.step(self.b.says(), vni, self.now_ns)]
            did.append(self.b.step(self.a.says(), vni, self.now_ns))
            if not any(did):
                return
        raise AssertionError("they never agree")

    def later(self, ns: int) -> None:
        self.now_ns += ns


def ends(family: str, vm: str = "web", first_port: int = UDP_PORT) -> tuple[LinkEnds, LinkEnds]:
    one, other, _ = _ADDRESSES[family]
    here = LinkEnds(vm, one, other, first_port, (first_port + 1, first_port + 2))
    return here, replace(here, local=other, peer=one)


@contextlib.contextmanager
def link(family: str, mtu: int = 1620) -> Iterator[Link]:
    """The wires, and policies on both hosts; no keys yet."""
    one, other, prefix = _ADDRESSES[family]
    names = ("a", "b", MIDDLE)
    try:
        for name in names:
            namespaces.create(name)
        inside(MIDDLE, lambda: bridges.create("br"))
        for name, address in (("a", one), ("b", other)):
            namespaces.create_veth("link0", f"to-{name}", name, MIDDLE, mtu)
            inside(MIDDLE, lambda name=name: bridges.join(f"to-{name}", "br"))
            inside(name, lambda a=address: netdev.add_address("link0", a, prefix))
        inside(MIDDLE, lambda: netdev.add_address("br", STRANGER[family], prefix))
        here, there = ends(family)
        made = Link(
            Side("a", "b", here, link=LinkKeys("a1", NAME)),
            Side("b", "a", there, link=LinkKeys("b1", NAME)),
            family,
        )
        for side in (made.a, made.b):
            side.inside(lambda side=side: xfrm.require(side.ends))
        _until_reachable(made)
        yield made
    finally:
        for name in names:
            namespaces.remove(name)


def _until_reachable(made: Link) -> None:
    """A bridge's ports forward, and neighbours know each other, before anything is counted."""
    with endpoint(made.a, UDP_PORT + 100) as here, endpoint(made.b, UDP_PORT + 100) as there:
        for _ in range(100):
            here.sendto(b"?", (made.b.ends.local, UDP_PORT + 100))
            with contextlib.suppress(TimeoutError):
                there.settimeout(0.2)
                there.recv(100)
                there.sendto(b"!", (made.a.ends.local, UDP_PORT + 100))
                return
    raise AssertionError("the wires do not carry anything")


@contextlib.contextmanager
def endpoint(side: Side, port: int = UDP_PORT) -> Iterator[socket.socket]:
    """A UDP socket of a host on its link address."""

    def make() -> socket.socket:
        one = socket.socket(addresses.family(side.ends.local), socket.SOCK_DGRAM)
        one.bind((side.ends.local, port))
        return one

    one = side.inside(make)
    try:
        yield one
    finally:
        one.close()


class Observer:
    """Sees what passes the bridge, and can send it again."""

    def __init__(self, middle: str = MIDDLE) -> None:
        self.frames: list[bytes] = []
        self._ports = {name: inside(middle, lambda n=name: self._open(n)) for name in "ab"}

    @staticmethod
    def _open(name: str) -> socket.socket:
        one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        one.bind((f"to-{name}", 0))
        one.settimeout(0.3)
        return one

    def look(self) -> list[bytes]:
        """All that came from either host so far."""
        for one in self._ports.values():
            with contextlib.suppress(TimeoutError):
                while True:
                    frame, where = one.recvfrom(1 << 16)
                    if where[2] != socket.PACKET_OUTGOING:
                        self.frames.append(frame)
        return self.frames

    def send(self, to: str, frame: bytes) -> None:
        """As if it had come over the wire."""
        self._ports[to].send(frame)

    def close(self) -> None:
        for one in self._ports.values():
            one.close()


def is_sealed(frame: bytes) -> bool:
    """ESP over IPv4 or IPv6."""
    kind = frame[12:14]
    return (kind == b"\x08\x00" and frame[23] == _ESP) or (
        kind == b"\x86\xdd" and frame[20] == _ESP
    )


def is_fragment(frame: bytes) -> bool:
    """Of IPv4 or IPv6."""
    if frame[12:14] == b"\x08\x00":
        return int.from_bytes(frame[20:22]) & 0x3FFF != 0
    return frame[12:14] == b"\x86\xdd" and frame[20] == 44


def refused(side: Side) -> dict[str, int]:
    return side.inside(xfrm.refused)


def eventually(what: Callable[[], bool], limit_s: float = 20.0) -> bool:
    """Slow as this machine is."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.05)
    return what()


def command(side: Side, *words: str) -> None:
    side.inside(lambda: subprocess.run(words, check=True, capture_output=True))
