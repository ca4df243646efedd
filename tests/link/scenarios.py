# SPDX-License-Identifier: GPL-2.0-only
"""What is tried on a kernel with IPsec. Each is a function that asserts.

No plaintext is seen, nothing unsealed, forged or replayed arrives, nobody but the peer reaches a
port, and keys change without the loss of a frame.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from colo_ebpf.control.peer.link_keys import DAY_NS, UNDER_WAY_NS
from colo_ebpf.datapath.net import ipsec, netdev, tunnel, vxlan, xfrm
from colo_ebpf.errors import AttachError
from tests.link.wires import (
    MIDDLE,
    NBD_PORT,
    STRANGER,
    UDP_PORT,
    Link,
    Observer,
    Side,
    command,
    endpoint,
    ends,
    eventually,
    inside,
    is_fragment,
    is_sealed,
    link,
    refused,
)

SECRET = b"the guest's password is swordfish"
FAMILIES = ("ipv4", "ipv6")
_SEALED_WRONG = "sealed with a wrong key, or changed on the way"


def the_kernel_can_do_it() -> None:
    assert xfrm.why_not() == ""
    with link("ipv4") as pair:
        assert pair.a.inside(lambda: xfrm.states(pair.a.ends, inbound=False)) == set()


@contextlib.contextmanager
def _observer() -> Iterator[Observer]:
    one = Observer()
    try:
        yield one
    finally:
        one.close()


@contextlib.contextmanager
def _serves_once(side: Side, port: int, answer: bytes) -> Iterator[None]:
    """Take one connection, as a QEMU's export does, hear it out and say something; if none has
    come by the end, wait for none."""

    def listen() -> socket.socket:
        return socket.create_server(
            (side.ends.local, port),
            family=socket.AF_INET6 if ":" in side.ends.local else socket.AF_INET,
        )

    server = side.inside(listen)

    def serve() -> None:
        with server, contextlib.suppress(OSError):
            server.settimeout(20)
            connection, _ = server.accept()
            with connection:
                connection.settimeout(20)
                while connection.recv(1 << 16):  # to its end: a close before that is a reset
                    pass
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it was taken, and the server is gone
            server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _ask(side: Side, port: int, question: bytes, timeout_s: float = 20) -> bytes:
    """Of the peer's port."""

    def connect() -> socket.socket:
        return socket.create_connection((side.ends.peer, port), timeout=timeout_s)

    with side.inside(connect) as one:
        one.sendall(question)
        one.shutdown(socket.SHUT_WR)
        return one.recv(1 << 16)


def _crosses(sender: Side, receiver: Side, text: bytes) -> bool:
    """A datagram to the frames' port arrives."""
    with endpoint(sender) as here, endpoint(receiver) as there:
        there.settimeout(1)
        with contextlib.suppress(OSError):
            here.sendto(text, (receiver.ends.local, UDP_PORT))
            return there.recv(1 << 16) == text
    return False


def nothing_passes_before_keys_are_agreed() -> None:
    with link("ipv4") as pair, _observer() as seen:
        assert not _crosses(pair.a, pair.b, SECRET)
        assert not _crosses(pair.b, pair.a, SECRET)
        assert not [one for one in seen.look() if SECRET in one]


def _no_plaintext(family: str) -> None:
    with link(family) as pair, _observer() as seen:
        pair.agree()
        assert pair.a.link.agreed and pair.b.link.agreed
        for port in (NBD_PORT, NBD_PORT + 1):
            for server, client in ((pair.a, pair.b), (pair.b, pair.a)):
                with _serves_once(server, port, SECRET):
                    assert _ask(client, port, SECRET) == SECRET
        assert _crosses(pair.a, pair.b, SECRET)
        assert _crosses(pair.b, pair.a, SECRET)
        frames = seen.look()
        assert len([one for one in frames if is_sealed(one)]) > 20
        assert not [one for one in frames if SECRET in one]


def no_plaintext_is_seen() -> None:
    _no_plaintext("ipv4")


def no_plaintext_is_seen_over_ipv6() -> None:
    _no_plaintext("ipv6")


def frames_of_the_plane_go_sealed() -> None:
    """Over the device that the planes have: a full-sized packet passes whole, and unseen, and so
    does what the stack has not cut yet."""
    for family in FAMILIES:
        mtu = tunnel.needed_mtu(1500, ends(family)[0].local, sealed=True)
        with link(family, mtu) as pair, _observer() as seen:
            pair.agree()
            for number, side in enumerate((pair.a, pair.b), 1):
                side.inside(lambda side=side, number=number: _tunnel(side, number))
            assert eventually(lambda: _ping(pair.a, _inner(2), 1472))
            frames = seen.look()
            assert [one for one in frames if is_sealed(one) and len(one) > 1550]
            inner = replace(pair.b, ends=replace(pair.b.ends, local=_inner(2)))
            client = replace(pair.a, ends=replace(pair.a.ends, peer=_inner(2)))
            with _serves_once(inner, 80, SECRET):
                assert _ask(client, 80, SECRET * 1000) == SECRET
            frames = seen.look()
            assert not [one for one in frames if is_fragment(one)]
            assert not [one for one in frames if b"abcdefgh" * 4 in one or SECRET in one]


def _inner(number: int) -> str:
    """Address of a host within the tunnel."""
    return f"192.168.9.{number}"


def _mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def _tunnel(side: Side, number: int) -> None:
    """What goes where is said frame by frame, as the planes do."""
    other = 3 - number
    vxlan.create("vx0", UDP_PORT, 1500)
    netdev.add_address("vx0", _inner(number), 32)
    encap = ("encap", "ip6" if ":" in side.ends.peer else "ip", "id", "7", "dst", side.ends.peer)
    for words in (
        ("ip", "link", "set", "vx0", "address", _mac(number)),
        ("ip", "route", "add", f"{_inner(other)}/32", *encap, "dev", "vx0"),
        ("ip", "neigh", "add", _inner(other), "lladdr", _mac(other), "dev", "vx0"),
    ):
        subprocess.run(words, check=True, capture_output=True)


def _ping(side: Side, address: str, size: int) -> bool:
    """With `don't fragment`; its payload is well known."""

    def exchange() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as one:
            one.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
            one.settimeout(2)
            one.connect((address, 0))
            with contextlib.suppress(TimeoutError, OSError):
                one.send(b"\x08\0\0\0\0\0\0\1" + b"abcdefgh" * (size // 8))
                return len(one.recv(1 << 16)) > size - 8
        return False

    command(side, "sysctl", "-w", "net.ipv4.ping_group_range=0 1000")
    return side.inside(exchange)


def a_link_one_byte_too_small_is_told_beforehand() -> None:
    for family in FAMILIES:
        need = tunnel.needed_mtu(1500, ends(family)[0].local, sealed=True)
        with link(family, need - 1) as pair:
            try:
                pair.a.inside(lambda need=need: vxlan.check_link_mtu("link0", 1500, need))
            except AttachError as e:
                assert f"set it to {need} or more" in str(e)
            else:
                raise AssertionError("it was not refused")


def what_is_not_sealed_is_refused() -> None:
    """Sent by who takes the peer's address, from the peer's own side of the bridge."""
    for family in FAMILIES:
        with link(family) as pair:
            pair.agree()
            pair.b.inside(lambda pair=pair: xfrm.remove(pair.b.ends))  # it sends as others would
            before = refused(pair.a)
            assert not _crosses(pair.b, pair.a, b"forged")
            assert refused(pair.a).get("not sealed", 0) > before.get("not sealed", 0)
            with _serves_once(pair.a, NBD_PORT, SECRET):
                try:
                    _ask(pair.b, NBD_PORT, b"give", timeout_s=2)
                except OSError:
                    continue
                raise AssertionError("the export answered")


def nobody_but_the_peer_reaches_a_port() -> None:
    for family in FAMILIES:
        with link(family) as pair:
            pair.agree()

            def connect(pair: Link = pair) -> None:
                socket.create_connection((pair.a.ends.local, NBD_PORT), timeout=2).close()

            with _serves_once(pair.a, NBD_PORT, SECRET):
                try:
                    inside(MIDDLE, connect)
                except OSError:
                    continue
                raise AssertionError(f"{STRANGER[family]} was let in")


def what_is_replayed_has_no_effect() -> None:
    with link("ipv4") as pair, _observer() as seen:
        pair.agree()
        with endpoint(pair.a) as here, endpoint(pair.b) as there:
            there.settimeout(1)
            for number in range(50):
                here.sendto(b"%d" % number, (pair.b.ends.local, UDP_PORT))
            got = {there.recv(100) for _ in range(50)}  # IPsec may reorder them
            assert got == {b"%d" % number for number in range(50)}
            recorded = [one for one in seen.look() if is_sealed(one)]
            assert len(recorded) == 50
            for frame in recorded * 3:
                seen.send("b", frame)
            for frame in recorded:
                seen.send("b", frame[:-20] + bytes((frame[-20] ^ 1,)) + frame[-19:])
            assert eventually(lambda: refused(pair.b).get("repeated", 0) >= 150)
            _is_silent(there)


def _is_silent(wire: socket.socket) -> None:
    wire.settimeout(0.5)
    try:
        got = wire.recv(1 << 16)
    except TimeoutError:
        return
    raise AssertionError(f"{got!r} arrived")


def what_was_changed_has_no_effect() -> None:
    with link("ipv4") as pair, _observer() as seen:
        pair.agree()
        command(pair.b, "ip", "link", "set", "link0", "mtu", "1620")
        with endpoint(pair.a) as here, endpoint(pair.b) as there:
            here.sendto(b"first", (pair.b.ends.local, UDP_PORT))
            there.settimeout(2)
            assert there.recv(100) == b"first"
            (frame,) = [one for one in seen.look() if is_sealed(one)]
            for at in (-1, -17, -25):  # the tag, and what is sealed
                later = bytearray(frame)
                later[38:42] = (1000 - at).to_bytes(4)  # a sequence number that was not yet there
                later[at] ^= 1
                seen.send("b", bytes(later))
            assert eventually(lambda: refused(pair.b).get(_SEALED_WRONG, 0) >= 3)
            _is_silent(there)


def a_recording_of_before_a_restart_has_no_effect() -> None:
    """Not even if both hosts have lost all that they knew: the key is another one."""
    with link("ipv4") as pair, _observer() as seen:
        pair.agree()
        assert _crosses(pair.a, pair.b, b"first")
        recorded = [one for one in seen.look() if is_sealed(one)]
        for side in (pair.a, pair.b):
            command(side, "ip", "xfrm", "state", "flush")
            side.restarts(f"{side.name}2")
        pair.agree()
        assert _crosses(pair.a, pair.b, b"second")
        with endpoint(pair.b) as there:
            for frame in recorded:
                seen.send("b", frame)
            _is_silent(there)


def another_key_opens_nothing() -> None:
    with link("ipv4") as pair:
        pair.agree()
        spi = pair.a.link.seals_with

        def take_another() -> None:
            xfrm.keep_states(pair.b.ends, inbound=True, spi=0)
            xfrm.add_state(pair.b.ends, inbound=True, spi=spi, key=bytes(ipsec.KEY_BYTES))

        pair.b.inside(take_another)
        assert not _crosses(pair.a, pair.b, SECRET)
        assert refused(pair.b).get(_SEALED_WRONG, 0) == 1


def keys_change_without_the_loss_of_a_frame() -> None:
    with link("ipv4") as pair, endpoint(pair.a) as here, endpoint(pair.b) as there:
        pair.agree()
        there.settimeout(5)
        got: list[bytes] = []
        stop = threading.Event()

        def send() -> None:
            number = 0
            while not stop.is_set():
                here.sendto(b"%d" % number, (pair.b.ends.local, UDP_PORT))
                number += 1
                stop.wait(0.001)
            here.sendto(b"end", (pair.b.ends.local, UDP_PORT))

        def receive() -> None:
            while not got or got[-1] != b"end":
                got.append(there.recv(100))

        threads = [threading.Thread(target=one) for one in (send, receive)]
        for one in threads:
            one.start()
        keys = {pair.a.link.seals_with}
        for vni in range(2, 10):  # pairings
            pair.agree(vni)
            keys.add(pair.a.link.seals_with)
        pair.later(DAY_NS)
        pair.agree(9)
        keys.add(pair.a.link.seals_with)
        pair.a.restarts("a2")
        pair.agree(9)
        keys.add(pair.a.link.seals_with)
        pair.later(UNDER_WAY_NS)
        pair.agree(9)
        stop.set()
        for one in threads:
            one.join()
        assert len(keys) == 11
        numbers = {int(one) for one in got[:-1]}
        missing = set(range(max(numbers) + 1)) - numbers
        assert not missing, f"{missing} of {max(numbers)}, {refused(pair.a)}, {refused(pair.b)}"
        for side in (pair.a, pair.b):
            for inbound in (False, True):
                found = side.inside(lambda s=side, i=inbound: xfrm.states(s.ends, inbound=i))
                assert len(found) == 1, "older ones were let go"


def a_flood_without_the_key_lets_the_link_work() -> None:
    with link("ipv4") as pair, _observer() as seen:
        pair.agree()
        assert _crosses(pair.a, pair.b, b"first")
        (frame,) = [one for one in seen.look() if is_sealed(one)]
        for number in range(3000):
            forged = bytearray(frame)
            forged[38:42] = (number + 10).to_bytes(4)
            seen.send("b", bytes(forged))
        assert _crosses(pair.a, pair.b, b"second"), "its sequence numbers were not taken for true"


def what_others_remove_is_seen_and_made_again() -> None:
    with link("ipv4") as pair:
        pair.agree()
        side = pair.a
        assert side.inside(lambda: xfrm.lacking(side.ends)) == set()
        command(side, "ip", "xfrm", "policy", "flush")
        assert side.inside(lambda: xfrm.lacking(side.ends)) == ipsec.selectors(side.ends)
        side.inside(lambda: xfrm.require(side.ends))
        assert side.inside(lambda: xfrm.lacking(side.ends)) == set()
        command(side, "ip", "xfrm", "state", "flush")
        assert not side.inside(lambda: xfrm.states(side.ends, inbound=True))
        assert not _crosses(pair.a, pair.b, b"lost")
        side.link = side.link.lost(opened=True, sealing=True)
        pair.agree()
        assert _crosses(pair.a, pair.b, b"again")
        assert _crosses(pair.b, pair.a, b"again")


def vms_of_the_same_hosts_do_not_touch_each_other() -> None:
    with link("ipv4") as pair:
        pair.agree()
        here, there = ends("ipv4", "db", UDP_PORT + 50)
        others = (replace(pair.a, ends=here), replace(pair.b, ends=there))
        second = Link(*others, "ipv4")
        for side in others:
            side.restarts(f"{side.name}-db")
            side.inside(lambda s=side: xfrm.require(s.ends))
        second.agree()
        assert _crosses(pair.a, pair.b, b"web")
        for side in others:
            side.inside(lambda s=side: xfrm.remove(s.ends))
            assert not side.inside(lambda s=side: xfrm.states(s.ends, inbound=True))
        assert _crosses(pair.a, pair.b, b"web")
        assert pair.a.inside(lambda: xfrm.lacking(pair.a.ends)) == set()


def a_link_that_is_not_to_be_sealed_any_more_has_nothing_left() -> None:
    for family in FAMILIES:
        with link(family) as pair:
            pair.agree()
            for side in (pair.a, pair.b):
                side.inside(lambda s=side: xfrm.remove(s.ends))
                side.inside(lambda s=side: xfrm.remove(s.ends))
            assert _crosses(pair.a, pair.b, b"in clear")


ALL: list[Callable[[], None]] = [
    the_kernel_can_do_it,
    nothing_passes_before_keys_are_agreed,
    no_plaintext_is_seen,
    no_plaintext_is_seen_over_ipv6,
    frames_of_the_plane_go_sealed,
    a_link_one_byte_too_small_is_told_beforehand,
    what_is_not_sealed_is_refused,
    nobody_but_the_peer_reaches_a_port,
    what_is_replayed_has_no_effect,
    what_was_changed_has_no_effect,
    a_recording_of_before_a_restart_has_no_effect,
    another_key_opens_nothing,
    keys_change_without_the_loss_of_a_frame,
    a_flood_without_the_key_lets_the_link_work,
    what_others_remove_is_seen_and_made_again,
    vms_of_the_same_hosts_do_not_touch_each_other,
    a_link_that_is_not_to_be_sealed_any_more_has_nothing_left,
]
