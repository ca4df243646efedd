# SPDX-License-Identifier: GPL-2.0-only
"""The page of what happened: it shows all of it, needs nothing else, and runs nobody's words."""

from __future__ import annotations

import json
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from colo_ebpf.cli import main
from colo_ebpf.cli.timeline import Known, of_failover, of_hours
from colo_ebpf.cli.timeline_page import page
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.control.admin.samples import EVERY_NS, MOST, MOST_AT_ONCE, Samples
from colo_ebpf.control.checkpoint.primary import Cause, Loaded
from colo_ebpf.errors import ControlError
from tests.capabilities import require
from tests.toy_daemon import ToyDaemon

NOW_S = 1_800_000_000.0
HOSTILE = "</title><script src='http://192.0.2.1/x'>alert(1)</script>\x1b[2J\0<!--"


def _row(at_s: float, old: str, new: str, **change: Any) -> dict[str, Any]:
    usual = {"at_s": at_s, "host": "b", "generation": 7, "from": old, "to": new}
    return {**usual, "why": "a is silent", "by": "itself", "silence_ms": None, **change}


def _sample(at_s: float, **change: Any) -> dict[str, Any]:
    usual = {"at_s": at_s, "state": "secondary", "peer": "primary", "held_frames": 3}
    return {**usual, "oldest_ms": 1.0, "checkpoints": {}, "pause_ms": 0.0, **change}


def _known(**change: Any) -> Known:
    begin_s = NOW_S - 3000
    rows = [
        _row(begin_s, "joining", "secondary"),
        _row(NOW_S - 1000, "secondary", "claimed"),
        _row(NOW_S - 999.9, "claimed", "solo", silence_ms=250.0),
        _row(NOW_S - 900, "solo", "pairing"),
    ]
    samples = [_sample(begin_s + 10 * n, peer="primary" if n < 200 else "") for n in range(300)]
    samples[250] = _sample(begin_s + 2500, checkpoints={"operator": 2, "age": 1}, pause_ms=12.5)
    usual: dict[str, Any] = {
        "vm": "web",
        "host": "b",
        "peer": "a",
        "now_s": NOW_S,
        "rows": rows,
        "samples": samples,
        "sentences": [(NOW_S - 999, "alone, unprotected")],
    }
    return Known(**(usual | change))


class _Reader(HTMLParser):
    """Tags in their order; fails where they are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _read(text: str) -> _Reader:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def _picture(text: str) -> ElementTree.Element:
    drawn = re.search(r"<svg.*</svg>", text, re.DOTALL)
    assert drawn
    return ElementTree.fromstring(drawn[0])


# --- the page -----------------------------------------------------------------------------


def test_it_shows_states_of_both_hosts_silence_checkpoints_and_why() -> None:
    text = page(of_hours(_known(), 1.0))
    _read(text)
    titles = [one.text or "" for one in _picture(text).iter("title")]
    for said in ("secondary", "solo", "pairing", "primary", "not heard", "2 operator", "1 age"):
        assert said in titles
    assert "no host served for 250 ms: a is silent" in titles
    assert "<td>claimed to solo</td>" in text
    assert "<td>1 times, 250 ms in all</td>" in text
    assert "<td>3: 2 operator, 1 age</td>" in text
    assert "<td>12.5 ms</td>" in text
    assert "alone, unprotected" in text


def test_it_needs_and_runs_nothing() -> None:
    tags = _read(page(of_hours(_known(), 1.0))).seen
    assert not [tag for tag, _ in tags if tag in ("script", "link", "img", "iframe", "object")]
    for _, attributes in tags:
        assert not {"src", "href", "onload", "onclick"} & set(attributes)
    assert "default-src 'none'" in page(of_hours(_known(), 1.0))


def test_what_others_said_is_text() -> None:
    rows = [_row(NOW_S - 50, HOSTILE, HOSTILE, why=HOSTILE, by=HOSTILE, silence_ms=1.0)]
    samples = [_sample(NOW_S - 10, peer=HOSTILE, checkpoints={HOSTILE: 1})]
    known = _known(
        vm=HOSTILE, host=HOSTILE, peer=HOSTILE, rows=rows, samples=samples, missing=HOSTILE
    )
    text = page(of_hours(known, 1.0))
    assert "script" not in [tag for tag, _ in _read(text).seen]
    assert "\x1b" not in text and "\0" not in text
    _picture(text)


@pytest.mark.parametrize("hours", [0.001, 1.0, 100_000.0])
def test_nothing_known_is_a_page_too(hours: float) -> None:
    known = _known(rows=[], samples=[], sentences=[], missing="no daemon answers")
    text = page(of_hours(known, hours))
    _read(text)
    assert "no daemon answers" in text
    assert "<p>None.</p>" in text


def test_what_began_before_is_shown_from_the_beginning() -> None:
    line = of_hours(_known(), 0.2)
    assert [bar.state for bar in line.here] == ["pairing"]
    assert line.here[0].begin_s == line.begin_s
    assert line.here[0].end_s == line.end_s == NOW_S


def test_a_failover_is_found_from_the_newest_back() -> None:
    rows = [
        *_known().rows,
        _row(NOW_S - 500, "pairing", "primary"),
        _row(NOW_S - 400, "primary", "lost"),
    ]
    known = _known(rows=rows)
    assert of_failover(known, 1).begin_s == NOW_S - 400 - 120
    second = of_failover(known, 2)
    assert [row["to"] for row in second.rows] == ["claimed", "solo", "pairing"]
    with pytest.raises(ControlError, match="b has seen 2 of them: no failover 3 of web"):
        of_failover(known, 3)
    with pytest.raises(ControlError, match="b has seen none: no failover 1 of web"):
        of_failover(_known(rows=[]), 1)


# --- what it is made of -------------------------------------------------------------------


def _add(to: Samples, number: int, **change: Any) -> None:
    usual: dict[str, Any] = {
        "at_s": float(number),
        "now_ns": number * EVERY_NS,
        "state": "primary",
        "peer": "",
        "held_frames": 0,
        "oldest_ms": 0.0,
        "by_cause": {},
        "recent": (),
    }
    to.add(**(usual | change))


def test_samples_tell_of_checkpoints_since_the_one_before() -> None:
    samples, cause = Samples(), Cause.OPERATOR
    _add(samples, 1, by_cause={cause: 2})
    loaded = [
        Loaded(1, 0, at_ns, pause_ns, 0, True, cause)
        for at_ns, pause_ns in ((EVERY_NS // 2, 99_000_000), (EVERY_NS + 1, 7_000_000))
    ]
    _add(samples, 2, by_cause={cause: 5}, recent=loaded)
    _add(samples, 3, by_cause={cause: 5}, recent=loaded)
    rows = samples.after(0)["rows"]
    assert [row["checkpoints"] for row in rows] == [{"operator": 2}, {"operator": 3}, {}]
    assert [row["pause_ms"] for row in rows] == [0.0, 7.0, 0.0]
    assert samples.due(4 * EVERY_NS) and not samples.due(4 * EVERY_NS - 1)


def test_samples_are_bounded_and_told_in_parts() -> None:
    samples = Samples()
    for number in range(MOST + 50):
        _add(samples, number)
    found, answer = [], {"next": 0, "more": True}
    while answer["more"]:
        answer = samples.after(answer["next"])
        assert len(answer["rows"]) <= MOST_AT_ONCE
        assert len(json.dumps(answer)) < 64 << 10
        found += [row["at_s"] for row in answer["rows"]]
    assert found == [float(n) for n in range(50, MOST + 50)]
    assert samples.after(10**9)["rows"] == []


# --- the command --------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration whose directories are `tmp_path`."""
    path = tmp_path / "config.toml"
    text = EXAMPLE.replace('/var/lib/colo-ebpf/web"', f'{tmp_path}"')
    path.write_text(text.replace('/run/colo-ebpf/web"', f'{tmp_path}"'))
    (tmp_path / "history.jsonl").write_text(
        json.dumps(_row(1.0, "claimed", "solo", silence_ms=90.0)) + "\n"
    )
    return path


def test_a_report_without_a_daemon_has_the_history(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = file.with_name("page.html")
    words = ["report", "--failover", "--output", str(out), "--config", str(file)]
    assert main.main(words) == 0
    assert "1 changes, 0 samples" in capsys.readouterr().out
    assert "Only changes of state are shown: no daemon answers" in out.read_text()
    assert main.main(words) == main.Exit.REFUSED
    assert "Overwrite" in capsys.readouterr().err


def test_a_report_of_a_daemon(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, out = Samples(), file.with_name("page.html")
    for number in range(MOST_AT_ONCE + 1):
        _add(samples, number)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["command"] == "samples":
            return {"ok": samples.after(request["after"])}
        return {"ok": [{"ago_ms": 5, "at_ns": 1, "sentence": "all is well"}]}

    with ToyDaemon(file.with_name("ctl.sock"), answer) as daemon:
        words = ["report", "--hours", "100000", "--json", "--yes", "-o", str(out)]
        assert main.main([*words, "--config", str(file)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["file"], said["missing"]) == (str(out), "")
    assert len(daemon.asked) == 3
    assert "all is well" in out.read_text()


def test_a_browser_shows_it(tmp_path: Path) -> None:
    require("chromium")
    at, picture = tmp_path / "page.html", tmp_path / "page.png"
    at.write_text(page(of_hours(_known(), 1.0)))
    home = {**os.environ, "HOME": str(tmp_path)}
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,1400"]
    for words in ([f"--screenshot={picture}"], ["--dump-dom"]):
        done = subprocess.run(
            [*browser, *words, at.as_uri()],
            env=home,
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    assert "no host served for 250 ms: a is silent" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000, "it is not blank"
