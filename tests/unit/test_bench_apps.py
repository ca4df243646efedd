# SPDX-License-Identifier: GPL-2.0-only
"""The applications part: what it makes of what its tools say (recorded from the real ones)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from colo_ebpf.bench.apps import loads, readings, told
from colo_ebpf.bench.apps.lane import Checkpoints, Measured
from colo_ebpf.bench.apps.lane_ours import checkpoints_between
from colo_ebpf.bench.apps.loads import Load
from colo_ebpf.bench.apps.readings import Reading
from colo_ebpf.bench.apps.rounds import Rounds
from colo_ebpf.errors import BenchError

_AB = """\
Concurrency Level:      20
Time taken for tests:   1.001 seconds
Complete requests:      1541
Failed requests:        0
Keep-Alive requests:    1541
Requests per second:    1540.10 [#/sec] (mean)
"""
_AB_SHARES = """\
Percentage served,Time in ms
0,1.570
50,12.713
98,14.639
99,25.339
100,138.304
"""
_AB_OF_SIX = """\
Time taken for tests:   2.068 seconds
Complete requests:      6
Failed requests:        0
"""
_AB_SHARES_OF_SIX = """\
Percentage served,Time in ms
0,312.400
50,322.234
98,0.000
99,0.000
100,331.153
"""
_AB_OF_NONE = """\
Time taken for tests:   2.001 seconds
Complete requests:      0
Failed requests:        0
"""
_REDIS = (
    '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms",'
    '"p99_latency_ms","max_latency_ms"\n'
    '"INCR","4310.34","11.291","5.248","9.871","19.375","39.199","41.375"\n'
)
_PGBENCH = """\
pgbench (15.20 (Debian 15.20-0+deb12u1))
transaction type: <builtin: select only>
scaling factor: 5
query mode: simple
number of clients: 8
number of threads: 1
maximum number of tries: 1
duration: 1 s
number of transactions actually processed: 3
number of failed transactions: 0 (0.000%)
latency average = 26.706 ms
initial connection time = 246.633 ms
tps = 299.560140 (without initial connection time)
"""
_PGBENCH_OF_NONE = """\
duration: 2 s
number of transactions actually processed: 0
number of failed transactions: 0 (NaN%)
"""
_PGBENCH_LOG = """\
4 1 73855 0 1795888651 478769
6 1 76201 0 1795888651 481128
5 1 79140 0 1795888651 484060
"""


def test_ab_says_shares_in_a_table_of_their_own() -> None:
    found = readings.ab(_AB, _AB_SHARES)
    assert found.rate == pytest.approx(1541 / 1.001)
    assert (found.p50_ms, found.p99_ms, found.longest_ms) == (12.713, 25.339, 138.304)


def test_of_a_few_requests_the_longest_is_the_share_that_ab_does_not_know() -> None:
    found = readings.ab(_AB_OF_SIX, _AB_SHARES_OF_SIX)
    assert (found.p50_ms, found.p99_ms) == (322.234, 331.153)


def test_failed_requests_are_no_answers() -> None:
    some = readings.ab(_AB.replace("Failed requests:        0", "Failed requests: 541"), _AB_SHARES)
    assert some.rate == pytest.approx(1000 / 1.001)
    with pytest.raises(BenchError, match="nothing was answered"):
        readings.ab(_AB_OF_NONE, "")


def test_ab_that_gave_up_says_why() -> None:
    with pytest.raises(BenchError, match="Connection reset"):
        readings.ab("apr_socket_recv: Connection reset by peer (104)", "")


def test_redis_benchmark() -> None:
    assert readings.redis(_REDIS) == Reading(4310.34, 9.871, 39.199, 41.375)
    with pytest.raises(BenchError, match="refused"):
        readings.redis("Could not connect to Redis: Connection refused")


def test_pgbench_counts_without_connecting_and_logs_microseconds() -> None:
    found = readings.pgbench(_PGBENCH, _PGBENCH_LOG)
    assert found.rate == 299.56014
    assert (found.p50_ms, found.longest_ms) == (76.201, 79.14)
    with pytest.raises(BenchError, match="nothing was answered in 2"):
        readings.pgbench(_PGBENCH_OF_NONE, "")


def test_a_file_that_was_broken_off_counts_for_what_came() -> None:
    found = readings.transfers("20000000 0.200154\n5000000 1.050000\n")
    assert found.rate == pytest.approx(25 / 1.250154)
    assert found.longest_ms == 1050
    with pytest.raises(BenchError, match="nothing was transferred"):
        readings.transfers("0 10.000000\n")


def test_two_clients_at_once_are_told_as_one() -> None:
    both = readings.mean([Reading(10, 1, 5, 9), Reading(30, 3, 7, 8)])
    assert both == Reading(20, 2, 6, 9)


def test_loads_are_chosen_by_key() -> None:
    assert [load.key for load in loads.chosen("get-50,http-each-1")] == ["get-50", "http-each-1"]
    assert loads.chosen("") == loads.LOADS
    with pytest.raises(BenchError, match="get-51: not one of get-1"):
        loads.chosen("get-51")
    assert len({load.name for load in loads.LOADS}) == len(loads.LOADS)


def _status(epoch: int, causes: dict[str, int], recent: dict[int, float]) -> dict[str, object]:
    taken = [{"epoch": one, "pause_ms": pause} for one, pause in recent.items()]
    return {"epoch": epoch, "checkpoints": {"by_cause": causes, "recent": taken}}


def test_checkpoints_of_a_load_are_those_between_two_answers() -> None:
    before = _status(7, {"mismatch": 3, "operator": 1}, {6: 1.0, 7: 2.0})
    after = _status(9, {"mismatch": 4, "operator": 1, "hold-age": 1}, {7: 2.0, 8: 10.0, 9: 30.0})
    found = checkpoints_between(before, after, 2.0)
    assert found.by_cause == {"mismatch": 1, "hold-age": 1}
    assert found.pauses_ms == (10.0, 30.0)
    assert found.stopped == pytest.approx(0.02)
    assert found.causes() == "mismatch 1, hold-age 1"


def test_the_share_stopped_counts_checkpoints_whose_pause_is_forgotten() -> None:
    assert Checkpoints(1.0, {"mismatch": 4}, (50.0, 100.0)).stopped == pytest.approx(0.3)
    assert Checkpoints(1.0).stopped == 0


def test_a_reading_as_a_line() -> None:
    load = loads.chosen("get-1")[0]
    measured = Measured(Reading(10, 1, 2, 3), Checkpoints(2.0, {"mismatch": 1}, (5.0,)))
    line = told.line("ours", load, measured)
    assert "checkpoints 1 in 2.0 s (mismatch 1)" in line
    assert told.plain("ours", load, measured)["checkpoints"]["by_cause"] == {"mismatch": 1}
    assert told.line("stock", load, "no end") == "stock     get-1              broke: no end"


class _Lane:
    """Breaks under one load, and may not start."""

    def __init__(self, breaks_at: str, failing_starts: int = 0) -> None:
        self.breaks_at, self.failing_starts = breaks_at, failing_starts
        self.starts, self.measured = 0, list[str]()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.starts += 1
        if self.starts <= self.failing_starts:
            raise BenchError("no start\nwith a log")
        yield

    async def measure(self, load: Load, seconds: float) -> Measured:
        self.measured.append(load.key)
        if load.key == self.breaks_at:
            raise BenchError("wedged")
        return Measured(Reading(1, 1, 1, seconds))


_THREE = loads.chosen("get-1,set-1,incr-1")


async def test_a_load_that_breaks_a_lane_is_its_result_and_the_next_has_a_new_one() -> None:
    lane, rounds = _Lane("set-1"), Rounds(lambda *_: None, lambda _: None)
    for _ in range(2):
        await rounds.turn("x", lane, _THREE, 2.0)
    assert lane.measured == ["get-1", "set-1", "incr-1", "get-1", "incr-1"]
    assert lane.starts == 3
    assert rounds.found["x", "set-1"].broke == "wedged"
    assert len(rounds.found["x", "incr-1"].readings) == 2


async def test_a_lane_that_does_not_start_has_no_readings() -> None:
    lane, rounds = _Lane("", failing_starts=2), Rounds(lambda *_: None, lambda _: None)
    await rounds.turn("x", lane, _THREE, 2.0)
    assert lane.measured == []
    assert all("no start" in found.broke for found in rounds.found.values())
    assert len(rounds.found) == 3


async def test_a_lane_is_not_put_under_a_load_that_it_cannot_have() -> None:
    lane, said = _Lane(""), list[str]()
    rounds = Rounds(lambda *_: None, said.append)
    rounds.leave_out("x", _THREE[1], "no figure")
    await rounds.turn("x", lane, _THREE, 2.0)
    assert lane.measured == ["get-1", "incr-1"]
    assert said[0] == "x: set-1: no figure"
    assert rounds.found["x", "set-1"].readings == []


async def test_a_start_that_fails_once_is_tried_again() -> None:
    lane, rounds = _Lane("", failing_starts=1), Rounds(lambda *_: None, lambda _: None)
    await rounds.turn("x", lane, _THREE, 2.0)
    assert lane.measured == ["get-1", "set-1", "incr-1"]
