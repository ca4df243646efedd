# SPDX-License-Identifier: GPL-2.0-only
"""What every arbiter has to do, whatever it keeps the record in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from colo_ebpf.control.arbiter.factory import OperatedArbiter
from colo_ebpf.control.arbiter.file import FileArbiter
from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.record import Kind
from colo_ebpf.errors import ArbiterError
from tests.etcd.cluster import Cluster

A = "a/0000000000000001"
MadeArbiter = Callable[[], OperatedArbiter]


@pytest.fixture(params=["file", "etcd", "etcd of three"])
def made(request: pytest.FixtureRequest, tmp_path: Path, key: str) -> MadeArbiter:
    """Makes clients of one and the same record."""
    if request.param == "file":
        return lambda: FileArbiter(tmp_path, 10_000)
    cluster = request.getfixturevalue("one" if request.param == "etcd" else "three")
    return lambda: cluster.arbiter(key)


async def test_a_missing_record_is_an_error_not_a_first_pairing(made: MadeArbiter) -> None:
    with pytest.raises(ArbiterError, match="arbiter init"):
        await made().read()
    first = record.cold("a")
    with pytest.raises(ArbiterError, match="arbiter init"):
        await made().swap(first, record.start(first, A))


async def test_init_writes_once(made: MadeArbiter) -> None:
    first = await made().init("a")
    assert (first.generation, first.kind, first.owner) == (1, Kind.COLD, "a")
    with pytest.raises(ArbiterError, match="holds a record already"):
        await made().init("b")
    assert await made().read() == await made().examine() == first


async def test_a_swap_is_read_by_everyone(made: MadeArbiter) -> None:
    newest = await made().init("a")
    for move in (lambda r: record.start(r, A), record.activate, record.reassert):
        wanted = move(newest)
        newest = await made().swap(newest, wanted)
        assert record.sealed(newest, "") == wanted
        assert await made().read() == newest


async def test_one_of_many_swaps_wins_and_all_know_which(made: MadeArbiter) -> None:
    arbiters = [made() for _ in range(8)]
    newest = await arbiters[0].init("a")
    for _ in range(10):
        old = newest
        if old.kind is Kind.COLD:
            wanted = [record.start(old, f"a/{i:016x}") for i in range(8)]
        else:
            wanted = [record.hand_to_image(old)] * 8
        results = await asyncio.gather(
            *(a.swap(old, new) for a, new in zip(arbiters, wanted, strict=True))
        )
        nonces = {result.nonce for result in results}
        assert len(nonces) == 1
        newest = await arbiters[0].read()
        assert newest.generation == old.generation + 1
        assert newest.nonce in nonces


async def test_an_old_record_loses_even_with_the_right_generation(made: MadeArbiter) -> None:
    first = await made().init("a")
    stale = record.sealed(first, "another nonce")
    assert (await made().swap(stale, record.start(first, A))) == first


async def test_a_swap_of_an_older_generation_is_told_the_newest(made: MadeArbiter) -> None:
    first = await made().init("a")
    second = await made().swap(first, record.start(first, A))
    assert await made().swap(first, record.start(first, A)) == second
    assert await made().read() == second


async def test_an_etcd_without_room_is_seen_before_it_is_needed(one: Cluster, key: str) -> None:
    """As found: reads were answered, `doctor` was content, and a takeover's swap was refused."""
    arbiter = one.arbiter(key)
    first = await arbiter.init("a")
    assert await arbiter.examine() == first
    (member,) = one.members
    alarm = {"alarm": "NOSPACE", "memberID": member.identity()}
    member.call("/v3/maintenance/alarm", {"action": "ACTIVATE", **alarm})
    try:
        assert await arbiter.read() == first
        with pytest.raises(ArbiterError):
            await arbiter.swap(first, record.start(first, A))
        with pytest.raises(ArbiterError, match="alarm NOSPACE: no record can be written"):
            await arbiter.examine()
    finally:
        member.call("/v3/maintenance/alarm", {"action": "DEACTIVATE", **alarm})
    assert (await arbiter.examine()).kind is Kind.COLD
