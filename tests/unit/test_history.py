# SPDX-License-Identifier: GPL-2.0-only
"""What happened to a VM is in a file that outlives daemon and host, and stays short."""

from __future__ import annotations

import itertools
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.cli import history as shown
from colo_ebpf.cli import main
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.control.decision.actions import State
from colo_ebpf.control.state import history, history_file
from colo_ebpf.control.state.history import Entry, History
from colo_ebpf.control.state.history_file import HistoryFile

MS = 1_000_000


def _changed(to: History, old: State, new: State, **change: Any) -> Entry:
    usual: dict[str, Any] = {"asked": False, "heard_ns": 0, "now_ns": 0, "at_s": 1.5}
    return to.changed(old, new, "because", generation=7, **(usual | change))


def _entry(number: int, why: str = "because") -> Entry:
    return Entry(at_s=float(number), host="a", generation=number, old="x", new="y", why=why, by="z")


# --- what is kept -------------------------------------------------------------------------


def test_a_takeover_tells_how_long_nobody_served() -> None:
    to = History("b")
    claimed = _changed(to, State.SECONDARY, State.CLAIMED, heard_ns=100 * MS, now_ns=260 * MS)
    assert (claimed.silence_ms, claimed.by) == (None, "itself")
    solo = _changed(to, State.CLAIMED, State.SOLO, heard_ns=0, now_ns=290 * MS)
    assert solo.silence_ms == 190.0
    assert _changed(to, State.SOLO, State.PAIRING, now_ns=400 * MS).silence_ms is None
    assert json.loads(history.line(solo)) == {
        "at_s": 1.5,
        "host": "b",
        "generation": 7,
        "from": "claimed",
        "to": "solo",
        "why": "because",
        "by": "itself",
        "silence_ms": 190.0,
    }


def test_a_primary_that_lost_its_replica_was_silent_while_it_decided() -> None:
    solo = _changed(History("a"), State.PRIMARY, State.SOLO, heard_ns=5 * MS, now_ns=165 * MS)
    assert solo.silence_ms == 160.0


def test_a_host_that_lost_tells_no_silence() -> None:
    to = History("a")
    states = (State.PRIMARY, State.LOST, State.ENDING, State.STANDBY, State.JOINING)
    found = [_changed(to, old, new, now_ns=9) for old, new in itertools.pairwise(states)]
    assert [one.silence_ms for one in found] == [None] * 4


def test_whom_it_was_by_is_told_until_it_is_over() -> None:
    to = History("b")
    assert _changed(to, State.SECONDARY, State.CLAIMED, asked=True).by == "operator"
    assert _changed(to, State.CLAIMED, State.SOLO).by == "operator"
    assert _changed(to, State.SOLO, State.PAIRING).by == "itself"


def test_a_pause_is_history_too() -> None:
    said = History("a").said("protection is paused", state=State.SOLO, generation=3, at_s=2.0)
    assert (said.old, said.new, said.by) == ("solo", "solo", "operator")


# --- the file -----------------------------------------------------------------------------


def _keep(directory: Path, *entries: Entry) -> Path:
    file = HistoryFile(directory)
    file.start()
    for entry in entries:
        file.add(entry)
    file._waiting.put(None)
    file._thread.join()
    return directory / history.FILE


def test_it_outlives_its_writer(tmp_path: Path) -> None:
    _keep(tmp_path, _entry(1), _entry(2))
    path = _keep(tmp_path, _entry(3))
    assert [one["generation"] for one in shown.rows(tmp_path)] == [1, 2, 3]
    assert history.entries(path.read_bytes().splitlines()) == [_entry(1), _entry(2), _entry(3)]
    assert path.stat().st_mode & 0o777 == 0o600


DEEP = b'{"what": ' + b"[" * 5000


@pytest.mark.parametrize("end", [b'{"at_s": 1', b"\0" * 100, b"\xff", b"[]\n7\n", DEEP])
def test_what_a_power_cut_left_is_no_entry_and_spoils_none(tmp_path: Path, end: bytes) -> None:
    path = _keep(tmp_path, _entry(1))
    path.write_bytes(path.read_bytes() + end)
    _keep(tmp_path, _entry(2))
    assert [one["generation"] for one in shown.rows(tmp_path)] == [1, 2]
    assert len(history.entries(path.read_bytes().split(b"\n"))) == 2


def test_it_stays_short_and_keeps_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_file, "MOST_BYTES", 4096)
    path = _keep(tmp_path, *(_entry(n, "w" * 100) for n in range(200)))
    assert path.stat().st_size <= 4096 + 200
    assert path.stat().st_mode & 0o777 == 0o600
    kept = [one["generation"] for one in shown.rows(tmp_path)]
    assert kept == list(range(200 - len(kept), 200))
    assert len(kept) > 5


def test_a_disk_that_takes_nothing_is_said_once_and_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = tmp_path / "gone"
    _keep(gone, *(_entry(n) for n in range(5)))
    assert caplog.text.count("the history of the VM is not kept") == 1


def test_a_disk_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(history_file, "_END_S", 0.01)
    file = HistoryFile(tmp_path)
    monkeypatch.setattr(file, "_append", lambda data: hangs.wait(60))
    file.start()
    for number in range(history_file._MOST_WAITING + 10):
        file.add(_entry(number))
    file.end()
    hangs.set()
    assert "the disk takes too long" in caplog.text


# --- the command --------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration whose state directory is `tmp_path`."""
    path = tmp_path / "config.toml"
    path.write_text(EXAMPLE.replace('/var/lib/colo-ebpf/web"', f'{tmp_path}"'))
    return path


def test_history_needs_no_daemon(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["history", "--config", str(file)]
    assert main.main(words) == 0
    assert "nothing has changed here yet" in capsys.readouterr().out
    to = History("a")
    _keep(file.parent, _changed(to, State.PRIMARY, State.SOLO, now_ns=160 * MS))
    assert main.main(words) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["WHEN", "GENERATION", "FROM", "TO", "BY", "SILENT", "WHY"]
    assert row.split()[2:] == ["7", "primary", "solo", "itself", "160", "ms", "because"]
    assert main.main([*words, "--json"]) == 0
    (plain,) = json.loads(capsys.readouterr().out)
    assert (plain["from"], plain["to"], plain["silence_ms"]) == ("primary", "solo", 160.0)


def test_an_older_row_lacks_something(tmp_path: Path) -> None:
    (tmp_path / shown.FILE).write_text('{"at_s": 0}\n')
    assert "?" in shown.readable(shown.rows(tmp_path))
    assert "generation ?" in shown.readable_line(shown.rows(tmp_path)[0])


def test_following_goes_over_what_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / shown.FILE
    changes = [
        lambda: path.write_bytes(path.read_bytes() + history.line(_entry(3))[:-1]),
        lambda: path.write_bytes(path.read_bytes() + b"\n"),
        lambda: path.write_bytes(history.line(_entry(3)) + history.line(_entry(4))),
        path.unlink,
        lambda: path.write_bytes(history.line(_entry(5))),
    ]
    monkeypatch.setattr("time.sleep", lambda _: changes.pop(0)())
    path.write_bytes(history.line(_entry(1)) + history.line(_entry(2)))
    rows = shown.follow(tmp_path)
    assert [next(rows)["generation"] for _ in range(5)] == [1, 2, 3, 4, 5]
    assert not changes


def test_a_state_directory_that_cannot_be_read_is_a_sentence(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkdir(file.parent / shown.FILE)
    assert main.main(["history", "--config", str(file)]) == main.Exit.REFUSED
    assert "history.jsonl: Is a directory" in capsys.readouterr().err
