# SPDX-License-Identifier: GPL-2.0-only
"""What is tried on a link that goes through a tunnel of WireGuard: the kernel's, or wireguard-go's.

Each is a function that asserts, in network namespaces of its own. Whoever sits between the hosts
sees no plaintext, and nothing that he sends, changes or sends again arrives.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from colo_ebpf.control.link_tunnel import Through
from colo_ebpf.control.peer import tunnel_keys
from colo_ebpf.control.qemu import peersocket
from colo_ebpf.datapath.net import (
    bridges,
    callers,
    namespaces,
    netdev,
    vxlan,
    wgdevice,
    wireguard,
    xfrm,
)
from colo_ebpf.datapath.net.wireguard import Contact, TunnelEnds
from colo_ebpf.errors import AttachError
from tests.link.forged import (
    FRAMES_PORT,
    VNI,
    WIREGUARD_PORT,
    is_of_the_tunnel,
    received,
    vxlan_packet,
    wait_for_more,
)
from tests.link.wires import Observer, T, eventually, is_fragment

_MARK = f"colot{os.getpid()}"
_MIDDLE = f"{_MARK}middle"
_ADDRESSES = {"ipv4": ("10.0.0.1", "10.0.0.2", 24), "ipv6": ("fd00::1", "fd00::2", 64)}
_STREAM_PORT = 20_002
_KEY, _NEXT_KEY = b"the pair's key....", b"the next key....."
_SECRET = b"the guest's password is swordfish"
_GUEST_MTU = 1500


@dataclass(slots=True)
class Host:
    """One of the two; `key`: of the pair."""

    name: str
    ends: TunnelEnds
    key: bytes = _KEY
    public_key: bytes = b""
    tunnel: Through = field(init=False)

    def __post_init__(self) -> None:
        self.tunnel = Through(self.ends, "link0", _GUEST_MTU)

    def inside(self, function: Callable[[], T]) -> T:
        return namespaces.run_in(f"{_MARK}{self.name}", function)

    def run(self, *words: str) -> None:
        self.inside(lambda: subprocess.run(words, check=True, capture_output=True))

    def set_up(self) -> None:
        self.public_key = self.inside(self.tunnel.set_up)

    def meet(self, other: Host) -> None:
        shared = tunnel_keys.preshared_key(self.key, self.public_key, other.public_key)
        contact = Contact(other.public_key, shared, (self.ends.peer, self.ends.port))
        self.inside(lambda: wgdevice.meet(self.ends, contact))

    def has_session(self) -> bool:
        contacts = self.inside(lambda: wgdevice.read(self.ends)).contacts
        return any(one.handshake_s for one in contacts)


@dataclass(frozen=True, slots=True)
class Pair:
    """Both, and who sits between them."""

    a: Host
    b: Host

    def meet(self) -> None:
        self.a.meet(self.b)
        self.b.meet(self.a)
        assert eventually(lambda: self.a.has_session() and self.b.has_session()), "no session"


@contextlib.contextmanager
def _pair(family: str = "ipv4", mtu: int = 0) -> Iterator[Pair]:
    """Wires, with a bridge in the middle, and a tunnel over them; nobody has met anybody."""
    one, other, prefix = _ADDRESSES[family]
    mtu = mtu or wireguard.needed_mtu(_GUEST_MTU, one)
    a = Host("a", TunnelEnds(_MARK, one, other, WIREGUARD_PORT, FRAMES_PORT))
    b = Host("b", TunnelEnds(_MARK, other, one, WIREGUARD_PORT, FRAMES_PORT))
    try:
        for name in ("a", "b", "middle"):
            namespaces.create(f"{_MARK}{name}")
        namespaces.run_in(_MIDDLE, lambda: bridges.create("br"))
        for host in (a, b):
            _plug_in(host, prefix, mtu)
        for host in (a, b):
            host.set_up()
        yield Pair(a, b)
    finally:
        for host in (a, b):
            with contextlib.suppress(AttachError, OSError):
                host.inside(host.tunnel.remove)
        for name in ("a", "b", "middle"):
            namespaces.remove(f"{_MARK}{name}")


def _plug_in(host: Host, prefix: int, mtu: int) -> None:
    port = f"to-{host.name}"
    namespaces.create_veth("link0", port, f"{_MARK}{host.name}", _MIDDLE, mtu)
    namespaces.run_in(_MIDDLE, lambda: bridges.join(port, "br"))
    host.inside(lambda: netdev.add_address("link0", host.ends.local, prefix))


@contextlib.contextmanager
def _observer() -> Iterator[Observer]:
    one = Observer(_MIDDLE)
    try:
        yield one
    finally:
        one.close()


@contextlib.contextmanager
def _datagrams(host: Host) -> Iterator[socket.socket]:
    """By the addresses that QEMU uses: WireGuard treats all alike."""

    def make() -> socket.socket:
        one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        one.bind((host.ends.inside(host.ends.local), 7000))
        one.settimeout(5)
        return one

    with host.inside(make) as one:
        yield one


def _crosses(sender: Host, receiver: Host, text: bytes) -> bool:
    with _datagrams(sender) as here, _datagrams(receiver) as there:
        there.settimeout(1)
        with contextlib.suppress(OSError):
            here.sendto(text, (sender.ends.inside(sender.ends.peer), 7000))
            return there.recv(1 << 16) == text
    return False


def _answers(server: Host, client: Host, text: bytes) -> bytes:
    """What a client gets of a server as QEMU's are, that says the same as it hears."""
    ends = server.ends
    where = (ends.inside(ends.local), _STREAM_PORT)
    peer, device = ends.inside(ends.peer), ends.device

    def listen() -> socket.socket:
        return peersocket.listen(*where, peer, device)

    listening = server.inside(listen)
    listening.settimeout(20)

    def serve() -> None:
        with contextlib.suppress(OSError):
            one, _ = listening.accept()
            with one:
                one.settimeout(20)
                heard = b""
                while part := one.recv(1 << 16):
                    heard += part
                one.sendall(heard)

    thread = threading.Thread(target=serve)
    with listening:
        thread.start()
        with client.inside(lambda: socket.create_connection(where, 20)) as one:
            one.sendall(text)
            one.shutdown(socket.SHUT_WR)
            heard = b""
            while part := one.recv(1 << 16):
                heard += part
        thread.join()
    return heard


def _frames_devices(pair: Pair) -> None:
    """As the planes have one; what goes where is said frame by frame."""
    for number, host in ((1, pair.a), (2, pair.b)):
        other, there = 3 - number, host.ends.frames(host.ends.peer)
        host.inside(lambda: vxlan.create("vx0", FRAMES_PORT, _GUEST_MTU))
        host.run("ip", "link", "set", "vx0", "address", f"02:00:00:00:00:0{number}")
        host.run("ip", "address", "add", f"192.168.9.{number}/32", "dev", "vx0")
        to = ("encap", "ip6", "id", str(VNI), "dst", there, "dev", "vx0")
        host.run("ip", "route", "add", f"192.168.9.{other}/32", *to)
        neighbour = (f"192.168.9.{other}", "lladdr", f"02:00:00:00:00:0{other}", "dev", "vx0")
        host.run("ip", "neigh", "add", *neighbour)


def _guests_frame_crosses(pair: Pair, size: int) -> bool:
    """A packet of a guest's, this long, that must not be cut."""

    def make(number: int) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        one.bind((f"192.168.9.{number}", 7000))
        one.settimeout(1)
        return one

    text = (_SECRET * (size // len(_SECRET) + 1))[: size - 28]
    here, there = pair.a.inside(lambda: make(1)), pair.b.inside(lambda: make(2))
    with here, there, contextlib.suppress(OSError):
        here.sendto(text, ("192.168.9.2", 7000))
        return there.recv(1 << 16) == text
    return False


def no_plaintext_passes_the_tunnel() -> None:
    for family in _ADDRESSES:
        with _pair(family) as pair, _observer() as seen:
            pair.meet()
            for one, other in ((pair.a, pair.b), (pair.b, pair.a)):
                assert _crosses(one, other, _SECRET)
                assert _answers(one, other, _SECRET * 1000) == _SECRET * 1000
            frames = seen.look()
            assert len([one for one in frames if is_of_the_tunnel(one)]) > 20
            assert not [one for one in frames if _SECRET in one]


def a_full_sized_frame_passes_the_tunnel_whole() -> None:
    for family in _ADDRESSES:
        with _pair(family) as pair, _observer() as seen:
            pair.meet()
            _frames_devices(pair)
            assert eventually(lambda pair=pair: _guests_frame_crosses(pair, _GUEST_MTU))
            frames = seen.look()
            assert [one for one in frames if is_of_the_tunnel(one) and len(one) > 1600]
            assert not [one for one in frames if is_fragment(one) or _SECRET in one]


def a_link_one_byte_too_small_for_the_tunnel_is_told() -> None:
    for family, (address, _, _) in _ADDRESSES.items():
        need = wireguard.needed_mtu(_GUEST_MTU, address)
        try:
            with _pair(family, need - 1):
                raise AssertionError("it was not refused")
        except AttachError as e:
            assert f"set it to {need} or more" in str(e)


def nothing_leaves_but_by_the_tunnel() -> None:
    """Before the hosts have met, and when the device is gone."""
    with _pair() as pair, _observer() as seen:
        assert not _crosses(pair.a, pair.b, _SECRET)
        pair.meet()
        _frames_devices(pair)
        assert eventually(lambda: _guests_frame_crosses(pair, 500))
        pair.a.inside(lambda: netdev.remove(pair.a.ends.device))
        pair.a.run("ip", "-6", "route", "add", "default", "dev", "link0")
        pair.a.run("ip", "-6", "address", "add", "fd99::1/64", "dev", "link0", "nodad")
        assert not _guests_frame_crosses(pair, 500)

        def send() -> None:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
                one.sendto(_SECRET, (pair.a.ends.inside(pair.a.ends.peer), 7000))

        try:
            pair.a.inside(send)
        except PermissionError:
            pass
        else:
            raise AssertionError("it was sent")
        assert not [one for one in seen.look() if _SECRET in one]


def frames_beside_the_tunnel_do_not_arrive() -> None:
    """Whatever address of the host they are for, and whosever they say that they are."""
    with _pair() as pair, _observer() as seen:
        pair.meet()
        _frames_devices(pair)
        assert eventually(lambda: _guests_frame_crosses(pair, 500))
        ends = pair.b.ends
        pair.b.run("ip", "-6", "address", "add", "fd99::2/64", "dev", "link0", "nodad")
        mac = pair.b.inside(lambda: netdev.link_of("link0").get_attr("IFLA_ADDRESS"))
        head = bytes.fromhex(mac.replace(":", "")) + bytes(6)
        before = received(pair.b)
        sixes = (ends.frames(ends.local), ends.inside(ends.local), "fd99::2")
        for source in (ends.frames(ends.peer), ends.inside(ends.peer), "fd99::1"):
            for destination in sixes:
                seen.send("b", head + vxlan_packet(source, destination, b"forged"))
        for destination in (ends.local, "255.255.255.255"):
            seen.send("b", head + vxlan_packet(ends.peer, destination, b"forged"))
        # Behind what was forged, by the same wire: once it is there, the other was looked at.
        assert eventually(lambda: _guests_frame_crosses(pair, 500))
        arrived = received(pair.b) - before
        assert 0 < arrived < 6, f"{arrived} frames for one that was sent"
        assert pair.b.inside(xfrm.refused).get("not from the peer", 0) > 0
        pair.b.inside(lambda: xfrm.remove(ends.frames_only))
        before = received(pair.b)
        forged = head + vxlan_packet(ends.frames(ends.peer), "fd99::2", b"forged")

        def arrives() -> bool:
            seen.send("b", forged)
            return received(pair.b) > before

        assert eventually(arrives), "the policies have held them off"


def nobody_beside_the_tunnel_reaches_a_port() -> None:
    """Not even who takes the peer's address in the tunnel for his own."""
    with _pair() as pair:
        pair.meet()
        ends = pair.b.ends
        where = (ends.inside(ends.local), _STREAM_PORT)

        def listen() -> socket.socket:
            return peersocket.listen(*where, ends.inside(ends.peer), ends.device)

        def take() -> None:
            netdev.add_address("br", ends.inside(ends.peer), 128)
            netdev.add_address("br", "fd99::9", 64)
            to = ["ip", "-6", "route", "add", where[0], "via", "fd99::2", "dev", "br"]
            subprocess.run(to, check=True, capture_output=True)

        def connect() -> None:
            source = (ends.inside(ends.peer), 0)
            socket.create_connection(where, 2, source).close()

        pair.b.run("ip", "-6", "address", "add", "fd99::2/64", "dev", "link0", "nodad")
        namespaces.run_in(_MIDDLE, take)
        with pair.b.inside(listen):
            try:
                namespaces.run_in(_MIDDLE, connect)
            except OSError:
                pass
            else:
                raise AssertionError("he was let in")
        assert _answers(pair.b, pair.a, _SECRET) == _SECRET


def no_user_of_a_host_sends_frames() -> None:
    """They would have the peer's address, and come through the tunnel."""
    with _pair() as pair:
        pair.meet()
        _frames_devices(pair)
        ends = pair.a.ends
        there = ends.frames(ends.peer)
        frame = vxlan_packet("::1", "::1", b"forged")[
            2 + 40 + 8 :
        ]  # without what the kernel puts before

        def send(user: int) -> None:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
                os.fchown(one.fileno(), user, user)  # whose a socket is counts
                index = socket.if_nametoindex(ends.device)
                one.bind((ends.frames(ends.local), 0, 0, index))
                one.sendto(frame, (there, FRAMES_PORT, 0, index))

        before = received(pair.b)
        pair.a.inside(lambda: send(65_534))
        assert eventually(lambda: received(pair.b) > before), "nothing hinders it yet"
        pair.a.inside(lambda: callers.only((0,), there, (FRAMES_PORT,), callers.UDP))
        try:
            pair.a.inside(lambda: send(65_534))
        except PermissionError:
            pass
        else:
            raise AssertionError("it was sent")
        assert eventually(lambda: _guests_frame_crosses(pair, 500)), "the kernel's are"


def what_is_sent_again_or_changed_does_not_arrive() -> None:
    with _pair() as pair, _observer() as seen:
        pair.meet()
        with _datagrams(pair.a) as here, _datagrams(pair.b) as there:
            to = (pair.a.ends.inside(pair.a.ends.peer), 7000)
            for number in range(50):
                here.sendto(b"%d" % number, to)
            assert [there.recv(99) for _ in range(50)] == [b"%d" % n for n in range(50)]
            recorded = [one for one in seen.look() if is_of_the_tunnel(one)]
            assert len(recorded) >= 50
            for frame in recorded * 3:
                seen.send("b", frame)
            for frame in recorded:
                seen.send("b", frame[:-20] + bytes((frame[-20] ^ 1,)) + frame[-19:])
            here.sendto(b"the last", to)
            assert there.recv(99) == b"the last"


def another_preshared_key_makes_no_session() -> None:
    with _pair() as pair:
        pair.b.key = _NEXT_KEY
        pair.a.meet(pair.b)
        pair.b.meet(pair.a)
        assert not _crosses(pair.a, pair.b, _SECRET)
        assert not _crosses(pair.b, pair.a, _SECRET)
        pair.b.key = _KEY
        pair.b.meet(pair.a)
        assert eventually(lambda: _crosses(pair.a, pair.b, b"met"))


def the_pairs_key_changes_without_the_loss_of_a_datagram() -> None:
    with _pair() as pair, _datagrams(pair.a) as here, _datagrams(pair.b) as there:
        pair.meet()
        to, got = (pair.a.ends.inside(pair.a.ends.peer), 7000), list[bytes]()
        stop = threading.Event()

        def send() -> None:
            number = 0
            while not stop.is_set():
                here.sendto(b"%d" % number, to)
                number += 1
                stop.wait(0.001)
            here.sendto(b"end", to)

        def receive() -> None:
            while not got or got[-1] != b"end":
                got.append(there.recv(99))

        threads = [threading.Thread(target=one) for one in (send, receive)]
        for one in threads:
            one.start()
        for host, other in ((pair.a, pair.b), (pair.b, pair.a)):
            wait_for_more(got)
            host.key = _NEXT_KEY
            host.meet(other)
            host.set_up()
        wait_for_more(got)
        stop.set()
        for one in threads:
            one.join()
        missing = set(range(len(got) - 1)) - {int(one) for one in got[:-1]}
        assert not missing, f"{missing} of {len(got)}"


def a_tunnel_that_was_removed_is_made_again() -> None:
    with _pair() as pair:
        pair.meet()
        ends, before = pair.a.ends, pair.a.public_key
        pair.a.inside(lambda: netdev.remove(ends.device))
        pair.a.run("ip", "xfrm", "policy", "flush")
        pair.a.set_up()
        assert pair.a.public_key != before
        assert not pair.a.inside(lambda: xfrm.lacking(ends.frames_only))
        pair.meet()
        assert eventually(lambda: _crosses(pair.a, pair.b, b"again"))
        pair.a.run("ip", "link", "set", ends.device, "down")  # and its addresses with it
        now = pair.a.public_key
        pair.a.set_up()
        assert pair.a.public_key == now
        assert eventually(lambda: _crosses(pair.a, pair.b, b"once more"))


def a_host_without_ipv6_of_its_own_has_it_in_the_tunnel() -> None:
    with _pair() as pair:
        pair.a.inside(pair.a.tunnel.remove)
        pair.a.run("sysctl", "-w", "net.ipv6.conf.default.disable_ipv6=1")
        pair.a.set_up()
        pair.meet()
        assert eventually(lambda: _crosses(pair.a, pair.b, b"there"))


def a_tunnel_that_is_not_wanted_any_more_has_nothing_left() -> None:
    """Nor one whose device somebody else has removed."""
    with _pair() as pair:
        pair.meet()
        pair.b.inside(lambda: netdev.remove(pair.b.ends.device))
        for host in (pair.a, pair.b):
            host.inside(host.tunnel.remove)
            host.inside(host.tunnel.remove)
            ends = host.ends
            assert not host.inside(lambda ends=ends: netdev.exists(ends.device))
            assert len(host.inside(lambda ends=ends: xfrm.lacking(ends.frames_only))) == 3
            host.run("sh", "-c", "! ip -6 route | grep -q prohibit")


ALL: list[Callable[[], None]] = [
    no_plaintext_passes_the_tunnel,
    a_full_sized_frame_passes_the_tunnel_whole,
    a_link_one_byte_too_small_for_the_tunnel_is_told,
    nothing_leaves_but_by_the_tunnel,
    frames_beside_the_tunnel_do_not_arrive,
    nobody_beside_the_tunnel_reaches_a_port,
    no_user_of_a_host_sends_frames,
    what_is_sent_again_or_changed_does_not_arrive,
    another_preshared_key_makes_no_session,
    the_pairs_key_changes_without_the_loss_of_a_datagram,
    a_tunnel_that_was_removed_is_made_again,
    a_host_without_ipv6_of_its_own_has_it_in_the_tunnel,
    a_tunnel_that_is_not_wanted_any_more_has_nothing_left,
]
