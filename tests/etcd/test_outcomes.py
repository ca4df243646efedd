# SPDX-License-Identifier: GPL-2.0-only
"""Swaps whose answer is late or lost, and members that die: what is known afterwards."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator

import pytest

from colo_ebpf.control.arbiter import etcd_client
from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.record import Record
from colo_ebpf.errors import ArbiterError, SwapUnknownError
from tests.etcd.cluster import Cluster, Member
from tests.etcd.proxy import Proxy, proxy

A, B = "a/0000000000000001", "a/0000000000000002"
SHORT_MS, NEVER_MS = 400, 3_600_000
LONG_S = 30  # far beyond any deadline of the arbiter


def _text(data: str | bytes) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def _written(newest: Record, wanted: Record) -> bool:
    return record.sealed(newest, "") == wanted


@pytest.fixture
async def between(one: Cluster) -> AsyncIterator[Proxy]:
    """A proxy in front of the single member."""
    async with proxy(one.members[0]) as made:
        yield made


# --- lost and late answers -------------------------------------------------------------------


async def test_a_lost_answer_is_learnt_from_the_nonce(
    one: Cluster, between: Proxy, key: str
) -> None:
    first = await one.arbiter(key).init("a")
    between.lost_replies = 1
    wanted = record.start(first, A)
    won = await one.arbiter(key, endpoints=[between.endpoint]).swap(first, wanted)
    assert _written(won, wanted)
    assert between.transactions == 2, "the second one told what became of the first"
    assert await one.arbiter(key).read() == won


async def test_a_swap_lost_to_another_while_its_answer_was_lost(
    one: Cluster, between: Proxy, key: str
) -> None:
    first = await one.arbiter(key).init("a")
    other = record.start(first, B)

    def overtake() -> None:
        value = _text(record.encode(record.sealed(other, "of another")))
        one.members[0].call("/v3/kv/put", {"key": _text(key), "value": value})

    between.lost_replies, between.on_txn = 1, overtake
    lost = await one.arbiter(key, endpoints=[between.endpoint]).swap(first, record.start(first, A))
    assert (lost.owner, lost.nonce) == (B, "of another")


async def test_a_member_that_hangs_in_the_middle_and_goes_on(
    one: Cluster, between: Proxy, key: str
) -> None:
    first = await one.arbiter(key).init("a")
    wanted = record.start(first, A)
    between.on_txn = one.members[0].pause
    swap = asyncio.create_task(one.arbiter(key, endpoints=[between.endpoint]).swap(first, wanted))
    await between.forwarded.wait()
    one.members[0].resume()
    assert _written(await swap, wanted)


async def test_a_member_that_hangs_too_long_leaves_the_outcome_unknown(
    one: Cluster, between: Proxy, key: str
) -> None:
    first = await one.arbiter(key).init("a")
    wanted = record.start(first, A)
    between.on_txn = one.members[0].pause
    arbiter = one.arbiter(key, SHORT_MS, [between.endpoint])
    async with asyncio.timeout(LONG_S):
        with pytest.raises(SwapUnknownError, match=r"generation 2 was written .*not known yet"):
            await arbiter.swap(first, wanted)
        with pytest.raises(ArbiterError, match="did not answer") as caught:
            await arbiter.read()
    assert not isinstance(caught.value, SwapUnknownError)
    one.members[0].resume()
    between.on_txn = lambda: None
    settled = await one.arbiter(key).swap(first, wanted)
    assert _written(settled, wanted), "it was the late one or this one"
    assert await one.arbiter(key).read() == settled


async def test_a_member_that_dies_in_the_middle_leaves_the_outcome_unknown(
    one: Cluster, between: Proxy, key: str
) -> None:
    first = await one.arbiter(key).init("a")
    between.lost_replies = 1

    def die() -> None:
        asyncio.get_running_loop().call_soon(one.members[0].kill)

    between.on_txn = die
    async with asyncio.timeout(LONG_S):
        with pytest.raises(SwapUnknownError):
            await one.arbiter(key, SHORT_MS, [between.endpoint]).swap(first, record.start(first, A))
    one.heal()
    assert (await one.arbiter(key).read()).generation in (1, 2)


async def test_nobody_there_is_known_not_to_have_written(one: Cluster, key: str) -> None:
    first = await one.arbiter(key).init("a")
    one.members[0].kill()
    with pytest.raises(ArbiterError, match=r"did not answer .*refused") as caught:
        await one.arbiter(key).swap(first, record.start(first, A))
    assert not isinstance(caught.value, SwapUnknownError)
    with pytest.raises(ArbiterError) as caught:
        await one.arbiter(key).init("a")
    assert not isinstance(caught.value, SwapUnknownError)
    one.heal()
    assert await one.arbiter(key).read() == first


# --- members -----------------------------------------------------------------------------------


def _asked_first(three: Cluster, member: Member) -> list[str]:
    others = [m.endpoint for m in three.members if m is not member]
    return [member.endpoint, *others]


def _follower(three: Cluster) -> Member:
    return next(member for member in three.members if not member.leads())


@pytest.mark.parametrize("how", ["kill", "pause"])
@pytest.mark.parametrize("who", ["follower", "leader"])
async def test_the_member_that_is_asked_first_is_lost(
    three: Cluster, key: str, how: str, who: str
) -> None:
    first = await three.arbiter(key).init("a")
    member = three.leader() if who == "leader" else _follower(three)
    arbiter = three.arbiter(key, NEVER_MS, endpoints=_asked_first(three, member))
    assert await arbiter.read() == first
    member.kill() if how == "kill" else member.pause()
    wanted = record.start(first, A)
    async with asyncio.timeout(LONG_S):  # the others are asked long before the deadline
        newest = await arbiter.swap(first, wanted)
        assert _written(newest, wanted)
        assert await arbiter.read() == newest
    with pytest.raises(ArbiterError, match=member.endpoint):
        await three.arbiter(key, SHORT_MS).examine()


async def test_a_member_that_refuses_is_not_waited_for(
    one: Cluster, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_client, "_PATIENCE_S", NEVER_MS)
    first = await one.arbiter(key).init("a")
    gone = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    nobody = f"http://127.0.0.1:{gone.sockets[0].getsockname()[1]}"
    gone.close()
    await gone.wait_closed()
    async with asyncio.timeout(LONG_S):
        assert await one.arbiter(key, NEVER_MS, [nobody, *one.endpoints]).read() == first


async def test_another_leader_changes_nothing(three: Cluster, key: str) -> None:
    newest = await three.arbiter(key).init("a")
    arbiter = three.arbiter(key)
    for move in (lambda r: record.start(r, A), record.activate):
        three.move_leader()
        wanted = move(newest)
        newest = await arbiter.swap(newest, wanted)
        assert _written(newest, wanted)


async def test_without_a_quorum_nothing_is_read_or_written(three: Cluster, key: str) -> None:
    first = await three.arbiter(key).init("a")
    alive = three.leader()
    for member in three.members:
        if member is not alive:
            member.kill()
    async with asyncio.timeout(LONG_S):
        for endpoints in (three.endpoints, [alive.endpoint]):
            arbiter = three.arbiter(key, SHORT_MS, endpoints)
            with pytest.raises(ArbiterError, match="did not answer"):
                await arbiter.read()
            with pytest.raises(ArbiterError, match="did not answer"):
                await arbiter.swap(first, record.start(first, A))
    three.heal()
    assert await three.arbiter(key).read() == first


async def test_a_quorum_lost_in_the_middle_leaves_the_outcome_unknown(
    three: Cluster, key: str
) -> None:
    first = await three.arbiter(key).init("a")
    wanted = record.start(first, A)
    alive = three.leader()
    others = [member for member in three.members if member is not alive]

    def lose() -> None:
        for member in others:
            member.pause()

    async with proxy(alive) as between:
        between.on_txn = lose
        async with asyncio.timeout(LONG_S):
            with pytest.raises(SwapUnknownError):
                await three.arbiter(key, SHORT_MS, [between.endpoint]).swap(first, wanted)
    three.heal()
    assert _written(await three.arbiter(key).swap(first, wanted), wanted)


# --- what the key holds ----------------------------------------------------------------------


async def test_a_compacted_history_does_not_matter(one: Cluster, key: str) -> None:
    first = await one.arbiter(key).init("a")
    newest = await one.arbiter(key).swap(first, record.start(first, A))
    revision = one.members[0].call("/v3/kv/range", {"key": _text(key)})["header"]["revision"]
    one.members[0].call("/v3/kv/compaction", {"revision": revision, "physical": True})
    assert await one.arbiter(key).read() == newest
    wanted = record.activate(newest)
    assert _written(await one.arbiter(key).swap(newest, wanted), wanted)


@pytest.mark.parametrize("value", ["", "not a record", "{}", "[1]", '{"generation":0}'])
async def test_garbage_is_an_error_that_names_the_key(one: Cluster, key: str, value: str) -> None:
    first = record.cold("a")
    one.members[0].call("/v3/kv/put", {"key": _text(key), "value": _text(value)})
    for attempt in (
        one.arbiter(key).read(),
        one.arbiter(key).init("a"),
        one.arbiter(key).swap(first, record.start(first, A)),
    ):
        with pytest.raises(ArbiterError, match=f"etcd key {key} is malformed"):
            await attempt


async def test_a_record_removed_in_the_middle_is_an_error(
    one: Cluster, between: Proxy, key: str
) -> None:
    first = await one.arbiter(key).init("a")
    between.on_txn = lambda: one.members[0].call("/v3/kv/deleterange", {"key": _text(key)})
    with pytest.raises(ArbiterError, match="no record in etcd key"):
        await one.arbiter(key, endpoints=[between.endpoint]).swap(first, record.start(first, A))


async def test_members_of_two_clusters_are_no_arbiter(
    one: Cluster, three: Cluster, key: str
) -> None:
    await one.arbiter(key).init("a")
    await three.arbiter(key).init("a")
    mixed = one.arbiter(key, endpoints=[*one.endpoints, *three.endpoints])
    await mixed.read()
    with pytest.raises(ArbiterError, match="have to be members of one cluster"):
        await mixed.examine()
    one.members[0].kill()
    with pytest.raises(ArbiterError, match="have to be members of one cluster"):
        await mixed.read()


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b'HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"\xff"',
        b'HTTP/1.1 200 OK\r\ncontent-length: 5005\r\n\r\n{"a":' + b"[" * 5000,
        b'HTTP/1.1 500 No\r\ncontent-length: 5005\r\n\r\n{"a":' + b"[" * 5000,
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n",
    ],
    ids=["text", "no UTF-8", "deep", "a deep error", "not found", "elsewhere"],
)
async def test_something_else_that_speaks_http_is_named(
    key: str, one: Cluster, reply: bytes
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with pytest.raises(ArbiterError, match=f"{endpoint}: not an answer of etcd v3"):
        await one.arbiter(key, endpoints=[endpoint]).read()
    server.close()
    await server.wait_closed()
