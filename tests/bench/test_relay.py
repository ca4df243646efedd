# SPDX-License-Identifier: GPL-2.0-only
"""The relay of lane lockstep between a client and toy servers, all on one loopback."""

from __future__ import annotations

import random
import select
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from colo_ebpf.bench.apps.clients import Where
from colo_ebpf.bench.apps.relay import relay
from colo_ebpf.datapath.net import namespaces, netdev
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.topology import GUEST_MTU
from tests.capabilities import require

_NAMESPACE = "colotestr-client"
_AT, _SERVERS, _PORT = "127.0.0.1", ("127.0.0.2", "127.0.0.3"), 7000
_PATIENCE_S = 20.0
_BLOCK = random.Random(1).randbytes(1_000_003)  # no multiple of anything the relay has
_MANY = _BLOCK * 64
_CHUNK = 1 << 16


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    require("root")
    namespaces.create(_NAMESPACE)
    namespaces.run_in(_NAMESPACE, lambda: netdev.set_up("lo", GUEST_MTU))
    yield
    namespaces.remove(_NAMESPACE)


def _socket() -> socket.socket:
    made = namespaces.run_in(_NAMESPACE, socket.socket)
    made.settimeout(_PATIENCE_S)
    return made


class _Bed:
    """Toy servers, and connections to them through the relay."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self.listeners = listeners
        self._open: list[socket.socket] = []
        self._prober: list[socket.socket] = []

    def connect(self) -> socket.socket:
        """A client."""
        client = _socket()
        self._open.append(client)
        client.connect((_AT, _PORT))
        return client

    def open(self) -> list[socket.socket]:
        """A client, and what the servers have of it."""
        client, servers = self.connect(), [one.accept()[0] for one in self.listeners]
        for one in servers:
            one.settimeout(_PATIENCE_S)
        self._open += servers
        return [client, *servers]

    def turn(self) -> None:
        """What arrived at the relay until now has been dealt with: it is one thread."""
        self._prober = self._prober or self.open()
        client, *servers = self._prober
        client.sendall(b"?")
        for server in servers:
            assert server.recv(9) == b"?"
            server.sendall(b"!")
        assert client.recv(9) == b"!"

    def nothing_for(self, one: socket.socket) -> bool:
        """Neither bytes nor an end have come."""
        self.turn()
        return not select.select([one], [], [], 0)[0]

    def fill(self, one: socket.socket, data: bytes) -> int:
        """Says as much as is taken; how much that was."""
        said = 0
        one.settimeout(0)
        while said < len(data):
            try:
                said += one.send(data[said : said + _CHUNK])
            except BlockingIOError:
                self.turn()
                if not select.select([], [one], [], 0)[1]:
                    break
        one.settimeout(_PATIENCE_S)
        return said

    def close(self) -> None:
        for one in (*self._open, *self.listeners):
            one.close()


@asynccontextmanager
async def _relayed(directory: Path, servers: tuple[str, ...] = _SERVERS) -> AsyncIterator[_Bed]:
    listeners = []
    for address in servers:
        listener = _socket()
        listener.bind((address, _PORT))
        listener.listen()
        listeners.append(listener)
    bed = _Bed(listeners)
    try:
        async with relay(directory, Where(_NAMESPACE, _AT), [_PORT], servers):
            yield bed
    finally:
        bed.close()


def _read(one: socket.socket, size: int, chunk: int = _CHUNK) -> bytes:
    """So many bytes, or all until the end."""
    got = bytearray()
    while len(got) < size and (data := one.recv(chunk)):
        got += data
    return bytes(got)


def _reset(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


def _read_all(one: socket.socket) -> None:
    while one.recv(_CHUNK):
        pass


def _assert_reset(one: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        _read_all(one)


@pytest.mark.parametrize(("early", "late"), [(1, 2), (2, 1)])
async def test_bytes_leave_when_both_have_said_them(tmp_path: Path, early: int, late: int) -> None:
    async with _relayed(tmp_path) as bed:
        ends = bed.open()
        client = ends[0]
        ends[early].sendall(b"hello")
        assert bed.nothing_for(client)
        ends[late].sendall(b"he")
        assert client.recv(9) == b"he"
        assert bed.nothing_for(client)
        ends[late].sendall(b"llo, client")
        assert _read(client, 3) == b"llo"
        assert bed.nothing_for(client)


async def test_the_client_has_the_bytes_of_the_first(tmp_path: Path) -> None:
    async with _relayed(tmp_path) as bed:
        client, first, second = bed.open()
        second.sendall(b"two")
        first.sendall(b"one")
        assert _read(client, 3) == b"one"


async def test_nothing_is_asked_before_both_have_accepted(tmp_path: Path) -> None:
    async with _relayed(tmp_path) as bed:
        bed.turn()
        first_port, second_port = bed.listeners
        second_port.listen(0)
        queue = _socket()
        queue.connect((_SERVERS[1], _PORT))  # now its queue is full
        client = bed.connect()
        client.sendall(b"?")
        first = first_port.accept()[0]
        assert bed.nothing_for(first)
        second_port.accept()[0].close()
        queue.close()
        second = second_port.accept()[0]
        with first, second:
            assert first.recv(9) == second.recv(9) == b"?"


async def test_one_that_refuses_ends_the_connection(tmp_path: Path) -> None:
    async with _relayed(tmp_path) as bed:
        bed.listeners[1].close()
        with pytest.raises(ConnectionResetError):  # it may come before `connect` is back
            _read_all(bed.connect())


@pytest.mark.parametrize("servers", [_SERVERS, _SERVERS[:1]])
async def test_everything_arrives_in_order(tmp_path: Path, servers: tuple[str, ...]) -> None:
    async with _relayed(tmp_path, servers) as bed:
        client, *ends = bed.open()
        sent = _BLOCK * 9

        def echo(server: socket.socket, chunk: int) -> bytes:
            heard = b""
            while data := server.recv(chunk):
                server.sendall(data)
                heard += data
            server.shutdown(socket.SHUT_WR)
            return heard

        def say() -> None:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)

        with ThreadPoolExecutor() as threads:
            heard = [threads.submit(echo, one, 7919 * n) for n, one in enumerate(ends, 1)]
            saying = threads.submit(say)
            assert _read(client, len(sent) + 1) == sent
            saying.result()
            assert all(one.result() == sent for one in heard)


async def test_an_end_passes_when_both_have_ended(tmp_path: Path) -> None:
    async with _relayed(tmp_path) as bed:
        client, first, second = bed.open()
        client.sendall(b"all of it")
        client.shutdown(socket.SHUT_WR)
        for server in (first, second):
            assert _read(server, 99) == b"all of it"
            server.sendall(b"answer")
        assert _read(client, 6) == b"answer"
        first.close()
        assert bed.nothing_for(client)
        second.close()
        assert client.recv(9) == b""


async def test_an_end_waits_for_what_was_said_before_it(tmp_path: Path) -> None:
    async with _relayed(tmp_path) as bed:
        client, *servers = bed.open()
        for server in servers:
            server.sendall(_BLOCK)  # the relay has room for it, the wire to the client has not
            server.shutdown(socket.SHUT_WR)
        bed.turn()
        assert _read(client, len(_BLOCK) + 1) == _BLOCK


async def test_a_client_that_is_gone_is_gone_for_both(tmp_path: Path) -> None:
    async with _relayed(tmp_path) as bed:
        client, *servers = bed.open()
        client.sendall(b"?")
        assert [server.recv(9) for server in servers] == [b"?", b"?"]
        _reset(client)
        for server in servers:
            _assert_reset(server)


@pytest.mark.parametrize(("dies", "lives"), [(1, 2), (2, 1)])
async def test_one_that_dies_ends_the_connection(tmp_path: Path, dies: int, lives: int) -> None:
    async with _relayed(tmp_path) as bed:
        ends = bed.open()
        ends[lives].sendall(b"alive")
        _reset(ends[dies])
        _assert_reset(ends[0])
        _assert_reset(ends[lives])


@pytest.mark.parametrize(("ends_early", "goes_on"), [(1, 2), (2, 1)])
async def test_what_one_says_beyond_the_others_end_resets(
    tmp_path: Path, ends_early: int, goes_on: int
) -> None:
    async with _relayed(tmp_path) as bed:
        ends = bed.open()
        ends[goes_on].sendall(b"9")
        ends[ends_early].sendall(b"9")
        ends[ends_early].shutdown(socket.SHUT_WR)
        assert _read(ends[0], 1) == b"9"
        assert bed.nothing_for(ends[0])
        ends[goes_on].sendall(b"0")
        _assert_reset(ends[0])


async def test_what_a_server_does_not_read_is_bounded(tmp_path: Path) -> None:
    async with _relayed(tmp_path) as bed:
        client, first, second = bed.open()
        with ThreadPoolExecutor() as threads:
            quick = threads.submit(_read, first, len(_MANY))
            said = bed.fill(client, _MANY)
            client.shutdown(socket.SHUT_WR)
            late = _read(second, len(_MANY))
            assert said < len(_MANY)
            assert late == quick.result() == _MANY[:said]


@pytest.mark.parametrize(("early", "late"), [(1, 2), (2, 1)])
async def test_what_only_one_has_answered_is_bounded(tmp_path: Path, early: int, late: int) -> None:
    async with _relayed(tmp_path) as bed:
        ends = bed.open()
        said = bed.fill(ends[early], _MANY)
        assert said < len(_MANY)
        with ThreadPoolExecutor() as threads:
            saying = threads.submit(ends[late].sendall, _MANY[:said])
            assert _read(ends[0], said) == _MANY[:said]
            saying.result()


async def test_a_relay_without_its_port_says_so(tmp_path: Path) -> None:
    taken = _socket()
    taken.bind((_AT, _PORT))
    taken.listen()
    with taken, pytest.raises(BenchError, match=r"does not start: bind: Address already in use"):
        async with relay(tmp_path, Where(_NAMESPACE, _AT), [_PORT], _SERVERS):
            pass
