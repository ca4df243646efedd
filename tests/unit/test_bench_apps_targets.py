# SPDX-License-Identifier: GPL-2.0-only
"""The applications part: rows, targets and the report's table."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from colo_ebpf.bench.apps import names, rows, summary
from colo_ebpf.bench.apps.lane import Checkpoints, Measured
from colo_ebpf.bench.apps.loads import LOADS, Load, Lockstep, chosen
from colo_ebpf.bench.apps.part_applications import without
from colo_ebpf.bench.apps.readings import Reading
from colo_ebpf.bench.apps.rounds import Found, Rounds
from colo_ebpf.bench.apps.targets import APPLICATIONS, needless, of_lockstep, of_stock, of_twins
from colo_ebpf.bench.pair.stock import pauses_ms
from colo_ebpf.bench.report import html_page, tables
from colo_ebpf.bench.report.target import Outcome
from colo_ebpf.bench.results import Recorder, Results, Row
from colo_ebpf.model import VmEvent, VmEventKind

_PAGE = chosen("http-keepalive-1")[0]
_GET = chosen("get-1")[0]


def _found(
    load: Load,
    rates: dict[str, list[float]],
    broke: dict[str, str] | None = None,
    causes: dict[str, int] | None = None,
) -> Results:
    rounds = Rounds(lambda *_: None, lambda _: None)
    for lane, values in rates.items():
        pair = lane not in (names.ALONE, names.TWINS, names.LOCKSTEP)
        taken = Checkpoints(2.0, causes or {}, (10.0,) if causes else ()) if pair else None
        readings = [Measured(Reading(rate, 1, 2, 3), taken) for rate in values]
        rounds.found[lane, load.key] = Found(readings, (broke or {}).get(lane, ""))
    recorder = Recorder(lambda _: None)
    rows.record(recorder, rounds, names.LANES, [load])
    return recorder.results(quick=True)


def test_ours_is_set_against_the_better_of_both_stock_settings() -> None:
    found = _found(
        _PAGE, {names.OURS: [90, 80], names.TWINS: [100, 100], "stock": [5], "stock-500": [30, 20]}
    )
    assert of_twins(_PAGE)(found) == pytest.approx(0.85)
    assert of_stock(_PAGE)(found) == pytest.approx(3.5)


def test_a_setting_of_stock_that_broke_is_no_peer() -> None:
    rates: dict[str, list[float]] = {names.OURS: [90], "stock": [40], "stock-500": [80]}
    one = _found(_PAGE, rates, {"stock-500": "no end"})
    assert of_stock(_PAGE)(one) == pytest.approx(90 / 40)
    none = _found(_PAGE, rates, {"stock": "no end", "stock-500": "no end"})
    assert of_stock(_PAGE)(none) == math.inf


def test_what_ours_did_before_it_broke_does_not_count() -> None:
    rates: dict[str, list[float]] = {names.OURS: [90], names.TWINS: [100], "stock": [10]}
    found = _found(_PAGE, rates, {names.OURS: "no end"})
    assert of_twins(_PAGE)(found) == 0
    assert of_stock(_PAGE)(found) == 0
    neither = _found(_PAGE, {names.OURS: [], "stock": []}, {names.OURS: "x", "stock": "y"})
    assert of_stock(_PAGE)(neither) == 0


def test_what_was_not_measured_has_no_figure() -> None:
    found = _found(_PAGE, {names.OURS: [90]})
    assert of_twins(_PAGE)(found) is None
    assert of_stock(_PAGE)(found) is None
    assert of_twins(_GET)(found) is None


def test_a_miss_of_stock_at_the_limit_of_two_vms_is_told() -> None:
    rates: dict[str, list[float]] = {names.OURS: [95], names.TWINS: [100], "stock": [80]}
    found = _found(_PAGE, rates)
    judged = [target.judge(found) for target in APPLICATIONS if target.measure == _PAGE.name]
    assert [one.outcome for one in judged] == [Outcome.MET, Outcome.LIMIT]


_MET, _LIMIT, _MISSED = Outcome.MET, Outcome.LIMIT, Outcome.MISSED


@pytest.mark.parametrize(
    ("lockstep", "broke", "expected"),
    [
        ([60], "", [_LIMIT, _LIMIT]),  # 0.92 of what a client can have that waits for both
        ([62], "", [_MISSED, _MISSED]),
        ([], "", [_MISSED, _MISSED]),
        ([60], "no end", [_MISSED, _MISSED]),  # not the limit: something else was measured
    ],
)
def test_a_miss_of_twins_at_the_limit_of_lockstep_is_told(
    lockstep: list[float], broke: str, expected: list[Outcome]
) -> None:
    rates: dict[str, list[float]] = {
        names.OURS: [55],
        names.TWINS: [100],
        names.LOCKSTEP: lockstep,
        "stock": [50],
    }
    found = _found(_GET, rates, {names.LOCKSTEP: broke} if broke else None)
    judged = [target.judge(found) for target in APPLICATIONS if target.measure == _GET.name]
    assert [one.outcome for one in judged] == expected
    assert not lockstep or broke or "of the limit" in judged[0].found


def test_ours_that_broke_is_at_no_limit() -> None:
    rates: dict[str, list[float]] = {names.OURS: [90], names.TWINS: [100], names.LOCKSTEP: [60]}
    found = _found(_GET, rates, {names.OURS: "no end"})
    judged = [target.judge(found) for target in APPLICATIONS if target.measure == _GET.name]
    assert judged[0].outcome is _MISSED


def test_a_target_that_is_met_needs_no_limit() -> None:
    rates: dict[str, list[float]] = {names.OURS: [90], names.TWINS: [100], names.LOCKSTEP: [200]}
    found = _found(_GET, rates)
    judged = [target.judge(found) for target in APPLICATIONS if target.measure == _GET.name]
    assert judged[0].outcome is _MET


@pytest.mark.parametrize(
    ("compare", "periodic", "expected"),
    [
        ([600], [650], [_LIMIT, _MISSED, _MET]),
        ([900], [100], [_MISSED, _MISSED, _MISSED]),
        ([], [660], [_LIMIT, _MISSED, _MET]),
        ([], [], [_MISSED, _MISSED, Outcome.NOT_MEASURED]),
    ],
)
def test_where_vms_differ_the_better_fixed_way_is_the_limit(
    compare: list[float], periodic: list[float], expected: list[Outcome]
) -> None:
    (load,) = chosen("incr-50")
    rates: dict[str, list[float]] = {
        names.OURS: [610],
        names.TWINS: [6_000],
        names.COMPARE: compare,
        names.PERIODIC: periodic,
        "stock": [500],
    }
    found = _found(load, rates)
    judged = [target.judge(found) for target in APPLICATIONS if target.measure == load.name]
    assert [one.outcome for one in judged] == expected


def test_the_way_is_fixed_only_where_it_matters() -> None:
    wanted = {load.key for load in LOADS if not without(names.PERIODIC, load)}
    assert wanted == {"incr-50", "https-each-20", "tpcb-8", "dice-1", "dice-50"}


def test_a_load_that_lockstep_has_no_figure_of_says_why() -> None:
    (load,) = chosen("https-keepalive-1")
    rounds = Rounds(lambda *_: None, lambda _: None)
    rounds.leave_out(names.LOCKSTEP, load, without(names.LOCKSTEP, load))
    rounds.found[names.OURS, load.key] = Found([Measured(Reading(90, 1, 2, 3))])
    recorder = Recorder(lambda _: None)
    rows.record(recorder, rounds, names.LANES, [load])
    found = recorder.results(quick=True)
    assert of_lockstep(load)(found) is None
    (line,) = summary.lines(found)
    cells = dict(zip(summary.HEAD, line, strict=True))
    assert cells["lockstep"] == Lockstep.KEYS.value
    assert cells["ours/lockstep"] == "-"
    assert Lockstep.KEYS.value in html_page._page(found, [])


def test_lockstep_has_what_one_plain_client_asks() -> None:
    for load in LOADS:
        why = without(names.LOCKSTEP, load)
        assert (why == Lockstep.KEYS.value) == load.key.startswith(("https", "ssh"))
        assert not without(names.OURS, load)
    unequal = {load.key for load in LOADS if load.lockstep is Lockstep.LENGTHS}
    assert unequal == {"incr-50", "tpcb-8"}
    measured = {load.key for load in LOADS if load.lockstep is Lockstep.MEASURED}
    assert measured >= {"get-1", "incr-1", "http-each-1", "tpcb-1", "dice-1", "file-up", "set-50"}


@pytest.mark.parametrize(
    ("load", "causes", "expected"),
    [
        (_PAGE, {"mismatch": 2}, 0),  # two seconds, two dates
        (_PAGE, {"mismatch": 3}, 1),
        (_PAGE, {"mismatch": 1, "hold-age": 4}, 4),
        (_GET, {"mismatch": 2}, 2),  # there is no date in its answers
        (_GET, {}, 0),
    ],
)
def test_only_a_new_date_is_a_reason_to_differ(
    load: Load, causes: dict[str, int], expected: int
) -> None:
    found = _found(load, {names.OURS: [1, 1]}, causes=causes)
    assert needless(found) == pytest.approx(expected * 60 / 2)
    row = found.row(names.PART, names.CHECKPOINTS.format(load.name), names.OURS)
    assert row is not None
    assert row.values == (sum(causes.values()) * 30,) * 2


def test_the_notes_of_checkpoints_name_the_causes_of_all_readings() -> None:
    found = _found(_PAGE, {names.OURS: [1, 1]}, causes={"mismatch": 2, "hold-age": 1})
    row = found.row(names.PART, names.STOPPED.format(_PAGE.name), names.OURS)
    assert row is not None
    assert row.note == "mismatch 4, hold-age 2 in 4 s"
    assert row.values == pytest.approx((1.5, 1.5))


def test_the_table_has_a_line_for_each_load_that_was_measured() -> None:
    rates: dict[str, list[float]] = {names.OURS: [90], names.TWINS: [100], "stock": [1]}
    found = _found(_PAGE, rates, {"stock": "no end within 9 s"}, {"mismatch": 2})
    (line,) = summary.lines(found)
    assert len(line) == len(summary.HEAD)
    cells = dict(zip(summary.HEAD, line, strict=True))
    assert cells["load"] == _PAGE.name
    assert cells["alone"] == "-"
    assert cells["ours"] == "90 /s"
    assert cells["stock"] == "broke: no end within 9 s"
    assert cells["ours/twins"] == "0.90"
    assert cells["ours/lockstep"] == cells["lockstep"] == "-"
    assert cells["ours/stock"] == "inf"
    assert cells["checkpoints a minute"] == "60 (mismatch 2 in 2 s)"
    assert tables.applications(found)[2].startswith(f"| {_PAGE.name} |")
    assert summary.share_of_twins(found, _PAGE, "stock") == 0
    assert summary.share_of_twins(found, _PAGE, names.OURS) == pytest.approx(0.9)


def test_the_report_shows_it_before_the_lanes() -> None:
    found = _found(_PAGE, {names.OURS: [90], names.TWINS: [100]})
    lanes = Row(part="lanes", measure="bulk download", lane="plain", unit="MB/s", values=(1.0,))
    page = html_page._page(replace(found, rows=(lanes, *found.rows)), [])
    assert page.index("ours/twins") < page.index("All figures") < page.index("of plain</th>")


def test_a_pause_is_from_stop_to_resume_and_one_that_lasts_is_none() -> None:
    stop, resume = VmEventKind.STOP, VmEventKind.RESUME
    events = [
        VmEvent(stop, 1_000_000),
        VmEvent(resume, 3_000_000),
        VmEvent(stop, 10_000_000),
        VmEvent(VmEventKind.MIGRATION_PASS, 11_000_000),
        VmEvent(resume, 15_000_000),
        VmEvent(stop, 20_000_000),
    ]
    assert pauses_ms(events, 0) == (2.0, 5.0)
    assert pauses_ms(events, 2_000_000) == (5.0,)
