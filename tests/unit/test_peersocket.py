# SPDX-License-Identifier: GPL-2.0-only
"""Sockets on which only the peer is heard, and who of this host may call the peer's."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
from collections.abc import Iterator

import pytest

from colo_ebpf.control.qemu import peersocket
from colo_ebpf.datapath.net import bridges, callers, namespaces, netdev
from colo_ebpf.errors import VmError
from tests.capabilities import require

PEER, HOST, STRANGER = "127.0.0.1", "127.0.0.2", "127.0.0.3"
_NS = f"colot{os.getpid()}call"
_USERS = (0, 70_011)
_PORTS = (10809, 4444)


def _call(address: str, port: int, source: str) -> socket.socket:
    one = socket.socket()
    one.bind((source, 0))
    one.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        one.connect((address, port))
    return one


def test_a_stranger_gets_no_answer_and_the_peer_does() -> None:
    with peersocket.listen(HOST, 0, PEER) as listening:
        port = listening.getsockname()[1]
        with _call(HOST, port, STRANGER) as stranger, _call(HOST, port, PEER) as peer:
            # The peer's last ACK may take effect a moment after the peer is connected.
            assert select.select([listening], [], [], 10)[0] == [listening]
            assert select.select([], [peer], [], 10)[1] == [peer]
            assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            accepted, (source, _) = listening.accept()
            assert source == PEER
            # The peer came later and is there; of the stranger not even half a connection is.
            assert select.select([listening], [stranger], [], 0) == ([], [], [])
            with accepted:
                peer.sendall(b"x")
                accepted.setblocking(True)
                assert accepted.recv(1) == b"x"
                with pytest.raises(PermissionError):  # locked, in what was accepted as well
                    accepted.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER


def test_over_ipv6_too() -> None:
    with peersocket.listen("::1", 0, "::1") as listening:
        where = listening.getsockname()[:2]
        socket.create_connection(where, timeout=10).close()
    with peersocket.listen("::1", 0, "fd00::1") as listening:
        one = socket.socket(socket.AF_INET6)
        one.setblocking(False)
        with one, contextlib.suppress(BlockingIOError):
            one.connect(listening.getsockname()[:2])
            assert select.select([listening], [one], [], 0.2) == ([], [], [])


def _reached(device: str) -> bool:
    with peersocket.listen(HOST, 0, PEER, device) as listening:
        try:
            socket.create_connection(listening.getsockname(), 2, (PEER, 0)).close()
        except OSError:
            return False
    return True


def test_the_peer_is_heard_by_one_device_alone() -> None:
    require("root")
    name = f"colot{os.getpid()}sock"
    namespaces.create(name)
    try:
        namespaces.run_in(name, lambda: netdev.set_up("lo"))
        namespaces.run_in(name, lambda: bridges.create("br0"))
        assert namespaces.run_in(name, lambda: _reached("lo"))
        assert not namespaces.run_in(name, lambda: _reached("br0"))
        with pytest.raises(VmError, match="No such device"):
            namespaces.run_in(name, lambda: peersocket.listen(HOST, 0, PEER, "wg-gone"))
    finally:
        namespaces.remove(name)


def test_a_port_that_is_taken_is_told() -> None:
    with (
        peersocket.listen(HOST, 0, PEER) as first,
        pytest.raises(VmError, match=r"cannot listen on port \d+ of 127\.0\.0\.2: Address already"),
    ):
        peersocket.listen(HOST, first.getsockname()[1], PEER)


@pytest.fixture(params=["10.9.8.2", "fd98::2"])
def peer(request: pytest.FixtureRequest) -> Iterator[str]:
    """A network with a way to it."""
    require("root")
    namespaces.create(_NS)
    address = str(request.param)
    try:
        subprocess.run(
            f"ip -n {_NS} link set lo up && ip -n {_NS} address add {address} dev lo nodad",
            shell=True,
            check=True,
        )
        yield address
    finally:
        namespaces.remove(_NS)


def _tries(peer: str, port: int, user: int, protocol: str = "tcp") -> str:
    """To look for a route as a connection does."""
    done = subprocess.run(
        [
            "ip",
            "-n",
            _NS,
            "route",
            "get",
            peer,
            "ipproto",
            protocol,
            "dport",
            str(port),
            "uid",
            str(user),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip()


def _rules(peer: str) -> list[str]:
    family = "-6" if ":" in peer else "-4"
    done = subprocess.run(
        ["ip", "-n", _NS, family, "rule"], capture_output=True, text=True, check=True
    )
    return [line for line in done.stdout.splitlines() if "proto 221" in line]


def test_of_this_host_only_root_and_qemu_reach_the_peers_qemu(peer: str) -> None:
    far = peer[:-1] + "9"
    family = "-6" if ":" in peer else "-4"
    subprocess.run(f"ip -n {_NS} {family} route add {far} dev lo", shell=True, check=True)
    for _ in range(2):
        namespaces.run_in(_NS, lambda: callers.only(_USERS, far, _PORTS))
    for port in _PORTS:
        assert [_tries(far, port, user) for user in _USERS] == ["", ""]
        assert "Permission denied" in _tries(far, port, 70_012)
    assert _tries(far, 22, 70_012) == ""
    before = _rules(far)
    assert len(before) == 1 + len(_PORTS) * (1 + len(_USERS))
    namespaces.run_in(_NS, lambda: callers.only((0, 70_012), far, _PORTS))
    assert "Permission denied" in _tries(far, _PORTS[0], 70_011)
    assert _tries(far, _PORTS[0], 70_012) == ""
    assert len(_rules(far)) == len(before), "what was said before is taken back"
    namespaces.run_in(_NS, lambda: callers.only((0,), far, _PORTS[:1], callers.UDP))
    assert len(_rules(far)) == len(before) + 2, "of another protocol"
    assert _tries(far, _PORTS[0], 0, "udp") == ""
    assert "Permission denied" in _tries(far, _PORTS[0], 70_012, "udp")
    assert _tries(far, _PORTS[0], 70_012) == ""
    namespaces.run_in(_NS, lambda: callers.anyone(far, _PORTS))
    assert _tries(far, _PORTS[0], 70_012) == ""
    assert len(_rules(far)) == 3, "another's rules, and what they jump to"
    for _ in range(2):
        namespaces.run_in(_NS, lambda: callers.anyone(far, _PORTS[:1], callers.UDP))
    assert _rules(far) == []
