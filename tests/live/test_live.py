# SPDX-License-Identifier: GPL-2.0-only
"""Real Linux TCP stacks on both sides, bad wires, thousands of connections, deaths at any time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Iterator

import pytest

from colo_ebpf.lab.bed import packet_socket
from tests.capabilities import require
from tests.live import clients
from tests.live.pair import ADDRESS, LivePair

SIZES = (1, 100, 1448, 5000, 20_000, 70_000, 300_000)
_PATIENCE_S = 120.0
_MULTIPATH_S = 30.0


def _content() -> dict[str, bytes]:
    rng = random.Random(7)
    return {f"{size}-{copy}": rng.randbytes(size) for size in SIZES for copy in range(3)}


@pytest.fixture
def pair() -> Iterator[LivePair]:
    require("root", "bpf", "nginx")
    with LivePair() as made:
        yield made


def _serve_same(pair: LivePair) -> dict[str, bytes]:
    content = _content()
    for host in ("a", "b"):
        pair.serve(host, content)
    pair.as_client(lambda: asyncio.run(_until_served(content)))
    return content


async def _until_served(content: dict[str, bytes]) -> None:
    name = min(content)
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            try:
                if await asyncio.wait_for(clients.fetch(name), 5) == content[name]:
                    return await clients.upload(random.Random(0), 1)
            except (OSError, TimeoutError):
                await asyncio.sleep(0.1)  # the servers are starting


def _crowd(pair: LivePair, content: dict[str, bytes], total: int, at_once: int) -> clients.Tally:
    tally = clients.Tally()

    async def run() -> None:
        async with asyncio.timeout(_PATIENCE_S):
            await clients.crowd(content, total, at_once, tally)

    pair.as_client(lambda: asyncio.run(run()))
    return tally


def test_thousands_of_connections_on_good_wires(pair: LivePair) -> None:
    content = _serve_same(pair)
    tally = _crowd(pair, content, 3000, 40)
    assert tally.wrong == []
    assert tally.done == 3000
    assert pair.planes["a"].mismatches() == []


def test_bad_wires_garble_nothing(pair: LivePair) -> None:
    """The link only doubles: what it loses or swaps a checkpoint heals, and here is none."""
    content = _serve_same(pair)
    pair.noise(lose=0.005, twice=0.01, late=0.05)
    pair.link_noise(lose=0, twice=0.02, late=0)
    tally = _crowd(pair, content, 300, 20)
    assert tally.wrong == []
    assert tally.done == 300
    assert pair.planes["a"].mismatches() == []
    counts = [one.counts() for one in pair.noises]
    assert all(sum(row[what] for row in counts) > 0 for what in ("lost", "doubled", "delayed"))


def test_frames_longer_than_an_ip_header_can_say_reach_both_vms(pair: LivePair) -> None:
    """BIG TCP. As found: each was dropped as malformed, and its client sent it again in pieces."""
    _serve_same(pair)
    pair.let_clients_send_whole(150_000)
    longest = pair.as_client(lambda: asyncio.run(_longest_of_an_upload(16_000_000)))
    assert longest > 65_536, "the wire had none"
    dropped = [row for row in pair.planes["a"].counters() if row.reason == "malformed"]
    assert dropped == []
    assert pair.planes["a"].mismatches() == []


@pytest.mark.parametrize("victim", ["primary", "secondary"])
def test_a_multipath_connection_outlives_a_host(pair: LivePair, victim: str) -> None:
    """As found: each VM had drawn a key of its own, and the client took nothing of the survivor's.

    It is plain TCP: no VM hears that the client offered more.
    """
    require("mptcp")
    _serve_same(pair)

    async def work() -> None:
        s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
        s.settimeout(_MULTIPATH_S)
        s.connect((ADDRESS, 82))  # asyncio's own asks the resolver, which knows no such protocol
        s.setblocking(False)
        async with asyncio.timeout(_MULTIPATH_S):
            reader, writer = await asyncio.open_connection(sock=s)
            await clients.send_file(reader, writer, random.Random(1).randbytes(100_000))
            await asyncio.to_thread(
                pair.kill_primary if victim == "primary" else pair.kill_secondary
            )
            await clients.send_file(reader, writer, random.Random(2).randbytes(100_000))
        writer.close()

    pair.as_client(lambda: asyncio.run(work()))


async def _longest_of_an_upload(total: int) -> int:
    """Length of the longest frame that an upload of so many bytes was sent in."""
    loop = asyncio.get_running_loop()
    longest = 0

    def look() -> None:
        nonlocal longest
        with contextlib.suppress(BlockingIOError):
            while True:
                longest = max(longest, wire.recv_into(bytearray(1), 1, socket.MSG_TRUNC))

    with packet_socket("a0") as wire:
        wire.setblocking(False)
        loop.add_reader(wire, look)
        async with asyncio.timeout(_PATIENCE_S):
            await clients.upload_of(random.Random(5).randbytes(total))
        loop.remove_reader(wire)
    return longest


@pytest.mark.parametrize("victim", ["primary", "secondary"])
@pytest.mark.parametrize("seed", range(3))
def test_a_death_at_any_moment_loses_nothing(pair: LivePair, victim: str, seed: int) -> None:
    content = _serve_same(pair)
    pair.noise(lose=0.002, twice=0.005, late=0.02)
    tally = clients.Tally()
    after = random.Random(seed).randrange(20, 120)

    async def run() -> None:
        async with asyncio.timeout(_PATIENCE_S):
            work = asyncio.create_task(clients.crowd(content, 250, 25, tally))
            while tally.done < after:
                await asyncio.sleep(0.002)  # the moment of death is random anyway
            kill = pair.kill_primary if victim == "primary" else pair.kill_secondary
            await asyncio.to_thread(kill)
            await work

    pair.as_client(lambda: asyncio.run(run()))
    assert tally.wrong == []
    assert tally.done == 250


def test_what_differs_never_reaches_a_client(pair: LivePair) -> None:
    """The servers part in the middle of a file; the client is left with what both have said."""
    content = _content()
    name, parted = "300000-0", 123_456
    other = dict(content)
    other[name] = content[name][:parted] + b"\0" + content[name][parted + 1 :]
    other[name] = other[name] if other[name] != content[name] else b""
    pair.serve("a", content)
    pair.serve("b", other)

    async def run() -> bytes:
        await _until_served({"1-0": content["1-0"]})
        received = bytearray()
        fetching = asyncio.create_task(clients.fetch(name, received))
        async with asyncio.timeout(_PATIENCE_S):
            while not pair.planes["a"].mismatches():
                await asyncio.sleep(0.01)
        assert bytes(received) == content[name][: len(received)]
        assert len(received) <= parted
        await asyncio.to_thread(pair.kill_primary)
        async with asyncio.timeout(_PATIENCE_S):
            return await fetching

    assert pair.as_client(lambda: asyncio.run(run())) == other[name], "it is the survivor's file"
