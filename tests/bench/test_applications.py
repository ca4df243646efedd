# SPDX-License-Identifier: GPL-2.0-only
"""Every lane of the applications once, under a load or two, and the pauses: nothing is left."""

from __future__ import annotations

import pytest

from colo_ebpf.bench.apps import names, part_applications, relay_cost
from colo_ebpf.bench.apps.loads import Lockstep, chosen
from colo_ebpf.bench.apps.part_applications import without
from colo_ebpf.bench.apps.pauses import Amounts
from colo_ebpf.bench.results import Recorder, Results
from colo_ebpf.datapath.net import namespaces
from colo_ebpf.lab import topology
from tests.capabilities import require

pytestmark = pytest.mark.timeout(900)  # of the fixture: five lanes with their VMs
NAME = "colotestq"
LEAST = part_applications.Plan(
    loads=chosen("http-keepalive-1,ssh-echo"),
    rounds=1,
    relays=1,
    pauses=Amounts(turns=1, readings=1, sizes_mib=(0, 20)),
)


@pytest.fixture(scope="module")
def found() -> Results:
    require("root", "bpf", "qemu", "guest-apps")
    recorder = Recorder(lambda _: None)
    part_applications.measure(recorder, LEAST, NAME)
    return recorder.results(quick=True)


def test_every_load_has_its_rows_in_every_lane(found: Results) -> None:
    for load in LEAST.loads:
        for lane in names.LANES:
            row = found.row(names.PART, load.name, lane)
            assert row is not None
            assert row.values or row.note.startswith(names.BROKE) or without(lane, load)
            for name in (names.P50, names.P99, names.LONGEST):
                assert found.row(names.PART, name.format(load.name), lane) is not None


@pytest.mark.parametrize("lane", [names.ALONE, names.TWINS, names.OURS])
def test_clients_are_answered(found: Results, lane: str) -> None:
    for load in LEAST.loads:
        row = found.row(names.PART, load.name, lane)
        assert row is not None
        assert row.note == ""
        assert min(row.values) > 0


def test_lockstep_answers_one_client_of_two_vms_but_not_over_ssh(found: Results) -> None:
    page, typed = (found.row(names.PART, load.name, names.LOCKSTEP) for load in LEAST.loads)
    assert page is not None
    assert page.note == ""
    assert min(page.values) > 0
    assert typed is not None
    assert typed.note == Lockstep.KEYS.value
    assert typed.values == ()


def test_the_relay_of_lockstep_says_what_it_costs(found: Results) -> None:
    for way in (names.DIRECT, names.RELAYED):
        row = found.row(names.PART, names.RELAY.format(relay_cost.LOAD.name), way)
        assert row is not None
        assert row.note == ""
        assert min(row.values) > 0


def test_pairs_say_what_their_checkpoints_cost(found: Results) -> None:
    load = LEAST.loads[0]
    for name in (names.CHECKPOINTS, names.PAUSE_P50, names.PAUSE_P99, names.STOPPED):
        assert found.row(names.PART, name.format(load.name), names.OURS) is not None
        assert found.row(names.PART, name.format(load.name), names.TWINS) is None
    assert found.row(names.PART, names.NEEDLESS.format(load.name), names.OURS) is not None


def test_pauses_are_measured_in_both_pairs(found: Results) -> None:
    for lane in (names.OURS, names.STOCK):
        for size_mib in LEAST.pauses.sizes_mib:
            row = found.row(names.PART, names.PAUSE.format(size_mib), lane)
            assert row is not None
            assert min(row.values) > 0
    assert {curve.line for curve in found.curves} >= {names.OURS, names.STOCK}
    assert found.row(names.PART, names.PAUSE.format(20), names.MULTIFD) is not None


def test_nothing_is_left(found: Results) -> None:
    assert not [name for name in namespaces.names() if name.startswith(NAME)]
    assert not topology.directory(NAME).exists()
