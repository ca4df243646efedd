# SPDX-License-Identifier: GPL-2.0-only
"""All VMs of a host in one table, and one line for a monitor."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.cli import health, listing, logs, look, main, paths, text, vms
from colo_ebpf.cli.health import Level
from colo_ebpf.cli.parser import parser
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.errors import ColoError, ConfigError
from tests import said
from tests.toy_daemon import ToyDaemon
from tests.unit.test_cli import _loaded

JOINING: dict[str, Any] = {"state": "joining", "role": "secondary", "protected": False}
COPIES = {"what": "disk", "done": 25, "total": 100}


def _row(status: dict[str, Any]) -> listing.Row:
    return listing.row("web", "web.toml", status, "")


# --- how well it is -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "level", "why"),
    [
        (said.status(), Level.OK, "protected, primary on a, by a and b"),
        (said.alone(), Level.WARNING, "serves on a, NOT protected: alone, unprotected"),
        (
            said.status(paused=True, protected=False),
            Level.WARNING,
            "serves on a, NOT protected: paused by the operator: `colo-ebpf resume` ends this",
        ),
        (
            said.status({"lacks": "its filter"}, protected=False),
            Level.WARNING,
            "serves on a, NOT protected: b lacks its filter",
        ),
        (
            said.status(lacks="its filter", protected=False),
            Level.WARNING,
            "serves on a, NOT protected: a lacks its filter",
        ),
        (
            said.status({"state": "pairing"}, **JOINING, sentence="joining", progress=COPIES),
            Level.WARNING,
            "serves on b, NOT protected: joining (disk: 25 %)",
        ),
        (
            said.alone(state="off", role="none", sentence="the guest powered itself off"),
            Level.WARNING,
            "the guest powered itself off",
        ),
        (
            said.alone(state="stuck", role="none", sentence="decide\nwhich image"),
            Level.CRITICAL,
            "no host is known to serve it: decide which image",
        ),
        (
            said.alone(state="standby", role="none", sentence="standing by for b"),
            Level.CRITICAL,
            "no host is known to serve it: standing by for b",
        ),
        (
            said.status(
                {"state": "solo"}, state="standby", protected=False, sentence="standing by"
            ),
            Level.WARNING,
            "serves on b, NOT protected: standing by",
        ),
    ],
)
def test_a_verdict(status: dict[str, Any], level: Level, why: str) -> None:
    assert health.judge(status) == health.Verdict(level, "web", why)


# --- the table ----------------------------------------------------------------------------


def test_a_line_of_a_protected_vm() -> None:
    table = listing.readable([_row(said.status())])
    head, line = table.splitlines()
    assert head.split("  ")[0] == "VM"
    cells = ["web", "a", "yes", "primary", "2h 1m", "b", "1", "30.0 ms", "ok", "replicated"]
    assert [cell.strip() for cell in line.split("  ") if cell.strip()] == cells


def test_a_line_of_a_vm_whose_link_carries_no_frames() -> None:
    assert _row(said.status({"plane_heard": False})).link == "no frames"
    assert _row(said.alone()).link == "silent for 1m 15s"


def test_the_secondary_knows_where_it_serves_but_takes_no_checkpoints() -> None:
    row = _row(said.status({"state": "primary"}, state="secondary", role="secondary"))
    assert (row.serves_on, row.replica) == ("b", "a")
    assert (row.checkpoints_a_minute, row.pause_p99_ms) == (None, None)


def test_a_vm_of_which_nothing_is_known() -> None:
    row = listing.row("web", "web.toml", None, "no daemon answers\x1b[2J on /run/x")
    line = listing.readable([row]).splitlines()[1]
    assert line.endswith(" no daemon answers [2J on /run/x")
    assert not row.protected


def test_lines_are_cut_to_the_terminal() -> None:
    assert max(map(len, listing.readable([_row(said.status())], 30).splitlines())) <= 30


@pytest.mark.parametrize(
    ("agos_ms", "rate"),
    [
        ([], 0),
        ([10.0, 59_000.0, 61_000.0], 2),
        ([float(n) * 100 for n in range(1, 65)], 600),  # all the daemon knows, within 6.4 s
    ],
)
def test_checkpoints_a_minute(agos_ms: list[float], rate: float) -> None:
    assert listing.a_minute(agos_ms, taken=True) == rate


@pytest.mark.parametrize(
    ("ms", "words"),
    [(None, "-"), (0.0, "0s"), (59_999.0, "59s"), (3_600_000.0, "1h"), (273_600_000.0, "3d 4h")],
)
def test_how_long_it_lasts(ms: float | None, words: str) -> None:
    assert listing.lasted(ms) == words


def test_the_usual_status_is_readable() -> None:
    assert "protected" in text.status(said.status())


# --- which VMs there are ------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two VMs with a file each, and a file that cannot be read."""
    (tmp_path / "vms").mkdir()
    for name in ("db", "web"):
        run_dir = tmp_path / name
        run_dir.mkdir()
        written = EXAMPLE.replace('"web"', f'"{name}"')
        written = written.replace("/run/colo-ebpf/web", str(run_dir))
        (tmp_path / "vms" / f"{name}.toml").write_text(written)
    (tmp_path / "vms" / "worse.toml").write_text("[vm]\nnam = 1\n")
    (tmp_path / "vms" / "web.toml~").write_text("an editor's")
    return tmp_path


@pytest.fixture
def daemons(directory: Path) -> Iterator[Path]:
    """Of db, protected, and of web, which says no."""
    with ExitStack() as stack:
        ok = {"ok": said.status(vm="db")}
        stack.enter_context(ToyDaemon(directory / "db" / "ctl.sock", lambda _: ok))
        no = {"error": "not now"}
        stack.enter_context(ToyDaemon(directory / "web" / "ctl.sock", lambda _: no))
        yield directory


def test_all_vms_of_a_host(daemons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["list", "--directory", str(daemons)]) == 0
    _, db, web, worse = capsys.readouterr().out.splitlines()
    assert "replicated" in db
    assert web.endswith("not now")
    assert "unknown key 'nam' in [vm]; did you mean 'name'?" in worse


def test_all_vms_as_json(daemons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["list", "--json", "--directory", str(daemons)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["vm"], row["protected"]) for row in rows] == [
        ("db", True),
        ("web", False),
        ("worse", False),
    ]


def test_a_daemon_that_hangs_keeps_no_other_from_being_shown(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vms, "_ANSWER_S", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(directory / "db" / "ctl.sock"))
        silent.listen()
        db, web, _ = look.rows(directory)
    assert "does not answer within" in db.why
    assert "no daemon answers" in web.why


def test_looking_again_and_again_ends_in_order(
    daemons: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert main.main(["list", "--watch", "7", "--json", "--directory", str(daemons)]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["vm"] for row in first] == [row["vm"] for row in second] == ["db", "web", "worse"]
    assert waited == [7, 7]


def test_no_vm_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["list", "--directory", str(tmp_path)]) == main.Exit.REFUSED
    assert "`colo-ebpf config example` prints one" in capsys.readouterr().err


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "vms").write_text("")
    with pytest.raises(ConfigError, match="vms: Not a directory"):
        vms.files(tmp_path)


# --- which one is meant -------------------------------------------------------------------


def test_a_vm_is_named(directory: Path) -> None:
    assert vms.locate(None, "db", directory) == directory / "vms" / "db.toml"


def test_a_vm_in_a_file_of_another_name(directory: Path) -> None:
    (directory / "vms" / "web.toml").rename(directory / "config.toml")
    assert vms.locate(None, "web", directory) == directory / "config.toml"
    assert vms.locate(None, None, directory) == directory / "config.toml"


@pytest.mark.parametrize(
    ("vm", "words"),
    [
        (None, "several VMs are configured here, name one: db, web, worse"),
        ("wbe", "no VM wbe is configured; those here: db, web, worse"),
        ("../../etc/passwd", "is not the name of a VM; files are named with --config"),
        ("", "is not the name of a VM"),
    ],
)
def test_which_vm_is_not_known(directory: Path, vm: str | None, words: str) -> None:
    with pytest.raises(ColoError, match=words):
        vms.locate(None, vm, directory)


def test_the_only_vm_needs_no_name(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLO_EBPF_CONFIG", raising=False)
    for name in ("db", "worse"):
        (directory / "vms" / f"{name}.toml").unlink()
    assert vms.locate(None, None, directory) == directory / "vms" / "web.toml"


def test_a_name_and_a_file(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"name a VM \(web\) or a file"):
        vms.locate(directory / "config.toml", "web", directory)


def test_the_environment_names_a_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLO_EBPF_CONFIG", "/elsewhere.toml")
    assert vms.locate(None, None, directory) == Path("/elsewhere.toml")


def test_a_file_is_named_beside_a_vm() -> None:
    args = parser(["capture"]).parse_args(["capture", "web", "held.pcapng"])
    assert (args.vm, args.file) == ("web", Path("held.pcapng"))
    args = parser(["capture"]).parse_args(["capture", "held.pcapng"])
    assert (args.vm, args.file) == (None, Path("held.pcapng"))
    args = parser(["status"]).parse_args(["status", "--json", "web"])
    assert (args.vm, args.json) == ("web", True)


# --- check, paths, logs -------------------------------------------------------------------


def _file(directory: Path, name: str) -> list[str]:
    return ["--config", str(directory / "vms" / f"{name}.toml")]


def test_a_line_for_a_monitor(daemons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["check", *_file(daemons, "db")]) == 0
    assert capsys.readouterr().out == "OK - db: protected, primary on a, by a and b\n"


@pytest.mark.parametrize(("name", "words"), [("web", "not now"), ("worse", "unknown key 'nam'")])
def test_what_a_monitor_cannot_know(
    daemons: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    assert main.main(["check", *_file(daemons, name)]) == Level.UNKNOWN == 3
    said, errors = capsys.readouterr()
    assert said.startswith("UNKNOWN - ")
    assert words in said
    assert (said.count("\n"), errors) == (1, "")


@pytest.mark.parametrize("verb", ["check", "list --directory", "logs --guest"])
def test_views_load_nothing_of_the_daemon(directory: Path, verb: str) -> None:
    where = [str(directory)] if verb.startswith("list") else _file(directory, "db")
    assert _loaded(*verb.split(), *where)[1] == []


def test_where_everything_is(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["paths", "--json", *_file(directory, "db")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unit"] == "colo-ebpf@db"
    assert found["control socket"] == str(directory / "db" / "ctl.sock")
    text = paths.readable(found)
    assert re.search(r"^run directory +\S+/db$", text, re.MULTILINE)
    assert re.search(r"^QMP socket +\S+/qmp.sock  \(not there\)$", text, re.MULTILINE)


def test_what_a_guest_writes_moves_no_cursor(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = directory / "db" / paths.GUEST_LOG
    log.write_bytes(b"first\r\nsecond\r\n\x1b]0;title\x07 \xff third\n")
    assert main.main(["logs", "--guest", "-n", "2", *_file(directory, "db")]) == 0
    assert capsys.readouterr().out == "second\n�]0;title� � third\n"


def test_a_log_that_is_not_there(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["logs", "--qemu", *_file(directory, "db")]) == main.Exit.REFUSED
    assert "qemu.log: not there" in capsys.readouterr().err


def test_a_daemons_log_is_the_journals(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journal = tmp_path / "journalctl"
    journal.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\n')
    journal.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert main.main(["logs", "-f", *_file(directory, "db")]) == 0
    words = (tmp_path / "words").read_text().split()
    assert {"--unit=colo-ebpf@db", "--lines=50", "--follow"} <= set(words)


def test_a_host_without_a_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ColoError, match="journalctl is not installed"):
        logs.of_unit("colo-ebpf", 1, follow=False, as_json=False)
