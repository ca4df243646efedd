# SPDX-License-Identifier: GPL-2.0-only
"""What the lanes read and how it becomes rows, without a lane."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import pytest

from colo_ebpf.bench import names
from colo_ebpf.bench.lanes import cpu, qemu, workload
from colo_ebpf.bench.lanes.lane import Lane
from colo_ebpf.bench.lanes.part_lanes import Plan, Reading, Readings, measure_load
from colo_ebpf.bench.lanes.workload import (
    DOWNLOAD,
    LOADS,
    REQUEST,
    Outcome,
    distribution,
    percentile,
)
from colo_ebpf.bench.results import Recorder
from colo_ebpf.datapath.net import rps
from colo_ebpf.errors import BenchError


def _said(times: list[int], **changed: int) -> bytes:
    fields = {"operations": len(times), "ns": 10**9, "bytes": 5 * 10**6, "failed": 0}
    fields |= {"stalled": 0, "opened": 1} | changed
    line = "{" + ",".join(f'"{key}":{value}' for key, value in fields.items()) + "}\n"
    return line.encode() + struct.pack(f"={len(times)}I", *times)


@pytest.mark.parametrize(
    ("values", "fraction", "expected"),
    [
        ([7], 0.5, 7),
        ([7], 1.0, 7),
        ([1, 2, 3], 0.5, 2),
        ([1, 2], 0.5, 1.5),
        (list(range(101)), 0.99, 99),
        (list(range(1001)), 0.999, 999),
        ([1, 2, 3], 0.0, 1),
    ],
)
def test_a_percentile_lies_between_its_neighbours(
    values: list[int], fraction: float, expected: float
) -> None:
    assert percentile(values, fraction) == pytest.approx(expected)


def test_a_distribution_ends_with_the_slowest() -> None:
    points = distribution([1000, 2000, 90000])
    assert points[0] == (1.0, 0.0)
    assert points[-1] == (90.0, 1.0)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert distribution([]) == ()


def test_what_the_load_says_is_an_outcome() -> None:
    found = workload.parse(_said([3000, 1000, 2000]))
    assert list(found.times_ns) == [1000, 2000, 3000]
    assert found.value("/s") == 3
    assert found.value("MB/s") == 5
    assert found.percentile_us(0.5) == 2
    assert found.whole
    assert found.trouble() == ""


def test_an_outcome_says_what_went_wrong() -> None:
    found = workload.parse(_said([], stalled=1, failed=2))
    assert not found.whole
    assert found.trouble() == "1 stalled, 2 failed"
    assert found.percentile_us(0.5) is None


@pytest.mark.parametrize("said", [b"", b"no", b"{}\n", _said([1, 2])[:-4], _said([1])[:-1]])
def test_half_an_outcome_is_none(said: bytes) -> None:
    with pytest.raises(BenchError):
        workload.parse(said)


def test_the_time_is_put_into_a_loads_arguments() -> None:
    assert DOWNLOAD.argv(2.0)[-1] == "2000"
    assert next(one for one in LOADS if one.name == names.CONNECTIONS).argv(0.5)[2:] == [
        "1",
        "500",
        "0",
    ]


def test_cpu_time_is_work_only() -> None:
    stat = "cpu  100 20 30 4000 500 6 7 80 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert cpu.parse(stat, 100) == pytest.approx(1.63)


def _reading(**changed: int) -> Reading:
    return Reading(
        workload.parse(_said([] if changed else [1], **changed)),
        1.0,
        1,
        1,
        Counter({"mismatch": 2}),
    )


def test_a_wedge_is_said_with_how_often() -> None:
    assert Readings([_reading(), _reading()]).note() == ""
    sometimes = Readings([_reading(), _reading(stalled=1)])
    assert sometimes.note() == "wedged in 1 of 2: 1 stalled"
    assert len(sometimes.values("/s")) == 2
    always = Readings([_reading(stalled=1)] * 2, gave_up=True)
    said = "wedged in 2 of 2: 1 stalled after 5.0 MB at most; not tried again"
    assert always.note() == said
    assert always.values("/s") == []


def test_causes_of_checkpoints_are_summed() -> None:
    assert Readings([_reading(), _reading()]).why() == "4 mismatch"
    assert Readings([]).why() == ""


def test_a_lane_that_fails_says_why_and_the_others_go_on() -> None:
    class Broken(Lane):
        renewed = False

        def run(self, argv: list[str], seconds: float) -> Outcome:
            raise BenchError("it has ended")

        def packets(self) -> int:
            return 0

        def renew(self) -> None:
            self.renewed = True

    recorder, lane = Recorder(lambda _: None), Broken(Path("/nowhere"))
    lane.name = names.QEMU
    measure_load(recorder, [lane], None, REQUEST, Plan(3, 0.1))
    row = recorder.results(quick=True).row(names.LANES, REQUEST.name, names.QEMU)
    assert row is not None
    assert (row.values, row.note) == ((), "it has ended")
    assert lane.renewed


def test_a_few_stalled_connections_are_no_wedge() -> None:
    readings = Readings([_reading(stalled=3, failed=1, opened=100)])
    assert readings.note() == "not whole in 1 of 1: 3 stalled, 1 failed"
    assert len(readings.values("/s")) == 1


@pytest.mark.parametrize(
    ("number", "mask"), [(0, "1"), (5, "20"), (31, "80000000"), (32, "1,00000000")]
)
def test_a_cpu_as_a_mask(number: int, mask: str) -> None:
    assert rps.cpu_mask((number,)) == mask


@pytest.mark.parametrize(
    ("cpus", "mask"), [(0, "0"), (2, "3"), (32, "ffffffff"), (40, "ff,ffffffff")]
)
def test_all_cpus_as_a_mask(cpus: int, mask: str) -> None:
    assert rps.cpu_mask(range(cpus)) == mask


def test_loads_have_names_of_their_own() -> None:
    assert len({one.name for one in LOADS}) == len(LOADS)
    assert REQUEST in LOADS


def test_qemus_chardevs_meet() -> None:
    """Whatever the secondary and the primary's own clients connect to, the primary serves."""
    directory = Path("/d")
    primary = qemu.primary_arguments(directory)
    both = primary + qemu.secondary_arguments(directory)
    served = {one.split("path=")[1].split(",")[0] for one in primary if "server=on" in one}
    wanted = {one.split("path=")[1].split(",")[0] for one in both if "path=" in one}
    assert wanted == served
    ids = {one.split("id=")[1].split(",")[0] for one in both if one.startswith("socket,")}
    used = {
        word.split("=")[1]
        for one in both
        for word in one.split(",")
        if word.split("=")[0] in ("indev", "outdev", "primary_in", "secondary_in", "notify_dev")
    }
    assert used <= ids


def test_an_outcome_of_nothing_has_no_rate_of_its_own() -> None:
    assert Outcome(0, 10**9, 0, 0, 1, 0, []).value("/s") == 0
