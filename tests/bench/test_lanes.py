# SPDX-License-Identifier: GPL-2.0-only
"""Every lane under every load, for a moment: each measure has a row, and nothing is left."""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
from pathlib import Path

import pytest

from colo_ebpf.bench import names, results
from colo_ebpf.bench.lanes import wires
from colo_ebpf.bench.lanes.part_lanes import Plan, measure
from colo_ebpf.bench.lanes.workload import LIMITED, LOADS, Load
from colo_ebpf.bench.results import Recorder, Results
from colo_ebpf.bench.suite import LANES
from colo_ebpf.datapath.net import namespaces
from tests.capabilities import require

_MANY = names.MANY.format(10_000)
_FEW = 300  # connections in place of 10,000


def _small(load: Load) -> Load:
    if load.name != _MANY:
        return load
    port, size, _, ms = load.arguments
    return dataclasses.replace(load, arguments=(port, size, _FEW, ms))


@pytest.fixture(scope="module")
def found() -> Results:
    require("root", "bpf", "qemu")
    recorder = Recorder(lambda _: None)
    measure(recorder, LANES, Plan(1, 0.1, tuple(_small(load) for load in LOADS)))
    return recorder.results(quick=True)


def test_every_load_has_a_figure_in_every_lane(found: Results) -> None:
    for load in LOADS:
        for lane in LANES:
            row = found.row(names.LANES, load.name, lane)
            assert row is not None, (load.name, lane)
            assert len(row.values) == 1 or "wedged" in row.note
            assert row.unit == load.unit


def test_without_a_proxy_everything_is_answered(found: Results) -> None:
    for load in LOADS:
        row = found.row(names.LANES, load.name, names.PLAIN)
        assert row is not None
        assert row.note == "", (load.name, row.note)
        assert row.values[0] > 0


def test_the_limit_is_measured_where_a_target_needs_it(found: Results) -> None:
    for load in LOADS:
        row = found.row(names.LANES, load.name, names.LIMIT)
        assert (row is not None) == (load.name in LIMITED)
        assert row is None or (row.note == "" and row.values[0] > 0)


def test_requests_are_answered_in_every_lane(found: Results) -> None:
    for lane in LANES:
        row = found.row(names.LANES, names.REQUEST_1B, lane)
        assert row is not None
        assert row.values[0] > 0, (lane, row.note)


def test_latencies_checkpoints_and_cpu_have_rows(found: Results) -> None:
    for load in LOADS:
        for lane in (names.QEMU, names.OURS):
            assert found.row(names.LANES, names.REQUESTS.format(load.name), lane) is not None
    for lane in LANES:
        assert found.row(names.LANES, names.P50.format(names.REQUEST_1B), lane) is not None
    for measured in (names.CPU_PER_GB, names.CPU_PER_PACKETS):
        for lane in (*LANES, names.TWO):
            assert found.row(names.LANES, measured, lane) is not None
        assert found.row(names.LANES, names.BEYOND.format(measured), names.OURS) is not None
    assert {curve.line for curve in found.curves} == {*LANES, names.LIMIT}


def test_guests_with_other_timestamps_are_reached_through_ours_only(found: Results) -> None:
    ours = found.row(names.LANES, names.OFFSETS, names.OURS)
    qemu = found.row(names.LANES, names.OFFSETS, names.QEMU)
    assert ours is not None
    assert qemu is not None
    assert ours.values[0] > qemu.values[0]


def test_the_results_can_be_kept(found: Results, tmp_path: Path) -> None:
    results.save(found, tmp_path / "results.json")
    assert results.load(tmp_path / "results.json") == found


def test_nothing_is_left(found: Results) -> None:
    ours = wires.prefix()
    assert [name for name in namespaces.names() if name.startswith(ours)] == []
    assert list(Path(tempfile.gettempdir()).glob(f"{ours}*")) == []
    assert ours not in Path("/proc/self/mounts").read_text()
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert ours not in commands.stdout
