# SPDX-License-Identifier: GPL-2.0-only
"""The results of a benchmark: kept, read again, and set against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from colo_ebpf.bench import results, suite
from colo_ebpf.bench.apps import names as apps
from colo_ebpf.bench.apps.loads import LOADS
from colo_ebpf.bench.kernel import names as kernel
from colo_ebpf.bench.report import html_page, tables
from colo_ebpf.bench.report.target import Outcome, Target, Verdict
from colo_ebpf.bench.report.targets import TARGETS
from colo_ebpf.bench.results import Curve, Recorder
from colo_ebpf.errors import BenchError


def _recorder() -> Recorder:
    recorder = Recorder(lambda _: None)
    recorder.add("lanes", "bulk download", "plain", "MB/s", values=(1000, 2000, 4000))
    recorder.add("lanes", "bulk download", "ours", "MB/s", values=(500, 500, 3000))
    recorder.add("lanes", "bulk download", "qemu", "MB/s", values=(), note="wedged")
    recorder.curve(
        Curve(part="growth", plot="p", line="l", x="flows", y="ns", points=((1, 2.5), (2, 3.0)))
    )
    return recorder


def test_every_lane_of_the_applications_is_in_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    recorder = _recorder()
    for lane in apps.LANES:
        recorder.add(apps.PART, LOADS[0].name, lane, "/s", values=(1.0, 2.0))
    html_page.write(recorder.results(quick=False), tmp_path)
    assert (tmp_path / "applications-relative-to-twins.png").exists()


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    found = _recorder().results(quick=True)
    results.save(found, tmp_path / "deep" / "results.json")
    assert results.load(tmp_path / "deep" / "results.json") == found


def test_a_ratio_is_taken_pair_by_pair() -> None:
    found = _recorder().results(quick=True)
    assert found.ratio("lanes", "bulk download", "ours", "plain") == 0.5
    assert found.ratio("lanes", "bulk download", "ours", "qemu") is None
    assert found.ratio("lanes", "bulk upload", "ours", "plain") is None


def test_a_row_is_told_with_its_spread_or_its_note() -> None:
    rows = _recorder().results(quick=True).rows
    assert [results.readable(row) for row in rows] == [
        "2,000 MB/s [1,000..4,000]",
        "500 MB/s [500..3,000]",
        "no figure (wedged)",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "run `colo-ebpf bench` first"), ("{}", "no results"), ("[", "no results")],
)
def test_bad_files_are_refused(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BenchError, match=words):
        results.load(path)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(BenchError, match="speed: not one of applications, lanes"):
        suite.run(["speed"], Recorder(lambda _: None), quick=True)


def test_what_was_measured_is_kept_though_the_next_part_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(recorder: Recorder, effort: suite.Effort) -> None:
        if recorder.results(quick=True).rows:
            raise BenchError("the machine is gone")
        recorder.add("lanes", "download", "ours", "MB/s", values=[1.0])

    monkeypatch.setattr(suite.importlib, "import_module", lambda _: SimpleNamespace(run=run))
    path, recorder = tmp_path / "results.json", Recorder(lambda _: None)
    with pytest.raises(BenchError, match="gone"):
        suite.run(
            ["lanes", "alone"], recorder, True, lambda: results.save(recorder.results(True), path)
        )
    assert [row.measure for row in results.load(path).rows] == ["download"]


def test_the_report_shows_every_row_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = html_page.write(_recorder().results(quick=False), tmp_path).read_text()
    for words in ("bulk download", "0.50x", "wedged", "2,000 MB/s", "p.png"):
        assert words in page
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        "lanes-relative-to-plain.png",
        "p.png",
    ]


def test_the_tables_have_a_line_for_each_measure() -> None:
    lines = tables.lanes(_recorder().results(quick=False))
    assert lines[2:] == ["| bulk download | 2,000 MB/s | wedged | 500 MB/s | - | 0.50 | - | - |"]
    assert len(tables.targets(_recorder().results(quick=False))) == 2 + len(TARGETS)


def test_every_outcome_of_a_target_can_be_shown() -> None:
    shown = [Verdict("m", "t", "f", one) for one in Outcome]
    table = html_page._targets(shown)
    assert all(f">{one.value}</td>" in table for one in Outcome)


def test_a_target_is_met_missed_or_not_measured() -> None:
    found = _recorder().results(quick=False)
    of_plain = Target(
        "d", "25 %", lambda r: r.ratio("lanes", "bulk download", "ours", "plain"), 0.25
    )
    assert of_plain.judge(found).outcome is Outcome.MET
    assert replace(of_plain, bound=0.6).judge(found).outcome is Outcome.MISSED
    assert replace(of_plain, bound=0.6, at_most=True).judge(found).outcome is Outcome.MET
    unknown = replace(of_plain, find=lambda r: r.ratio("lanes", "x", "ours", "plain"))
    assert unknown.judge(found).outcome is Outcome.NOT_MEASURED
    missed = replace(of_plain, bound=0.6)
    at_limit, below = (replace(missed, share=lambda _, s=s: s) for s in (0.9, 0.89))
    assert at_limit.judge(found).outcome is Outcome.LIMIT
    assert below.judge(found).outcome is Outcome.MISSED
    assert below.judge(found).found.endswith(", 89% of the limit")


def test_one_false_checkpoint_in_any_reading_is_one_too_many() -> None:
    (target,) = [one for one in TARGETS if one.measure.startswith("false checkpoints")]
    for readings, outcome in (((0, 0, 0), Outcome.MET), ((0, 0, 2), Outcome.MISSED)):
        recorder = Recorder(lambda _: None)
        for load, values in (("some load", (0, 0)), ("another", readings)):
            measure = f"checkpoint requests, {load}"
            recorder.add("lanes", measure, "ours", "requests", values=values)
            recorder.add("lanes", measure, "qemu", "requests", values=(7,))
        assert target.judge(recorder.results(quick=False)).outcome is outcome


def test_a_cold_look_up_is_the_limit_of_many_flows() -> None:
    """From 800 to 1,700 ns, 750 of which the look-up alone became dearer: the limit is 1,550."""
    recorder = Recorder(lambda _: None)
    (target,) = (one for one in TARGETS if one.measure == "flows 1 to 1,000,000")
    line = kernel.both(1448)
    recorder.add("growth", kernel.growth(kernel.FLOWS, line), "ours", "", values=(1700 / 800,))
    assert target.judge(recorder.results(quick=False)).outcome is Outcome.MISSED
    for name, points in ((line, (800, 900, 1700)), (kernel.LOOK_LINES, (80, 160, 830))):
        recorder.curve(
            Curve(
                part="growth",
                plot=kernel.FLOWS,
                line=name,
                x="flows",
                y="ns",
                points=tuple(zip((1, 1024, 1 << 20), points, strict=True)),
            )
        )
    verdict = target.judge(recorder.results(quick=False))
    assert (verdict.outcome, verdict.found) == (Outcome.LIMIT, "2.12 x, 91% of the limit")
