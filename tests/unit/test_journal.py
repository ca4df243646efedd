# SPDX-License-Identifier: GPL-2.0-only
"""The journal: which lines matter, the native protocol, and a real journald that is asked."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf.control.core import severity
from colo_ebpf.control.decision.actions import Decision, State
from colo_ebpf.control.host import journal
from colo_ebpf.model import VmEvent, VmEventKind
from tests import states
from tests.capabilities import ROOT, require

JOURNALD = Path("/lib/systemd/systemd-journald")
ELSEWHERE = Decision(State.STANDBY, "standing by")


# --- which lines matter -----------------------------------------------------------------------


def _levels() -> dict[State, dict[str, set[int]]]:
    found: dict[State, dict[str, set[int]]] = {state: {} for state in State}
    for _, d in states.decisions(30_000):
        same = Decision(d.state, "another sentence of this state")
        level = severity.of_decision(same, d, ("ERROR",))
        found[d.state].setdefault(d.sentence, set()).add(level)
    return found


def test_of_all_that_a_daemon_can_say() -> None:
    found = _levels()
    for state, sentences in found.items():
        for sentence, levels in sentences.items():
            assert len(levels) == 1, sentence
            (level,) = levels
            if state is State.STUCK:
                assert level == logging.ERROR, sentence
            elif "ERROR" in sentence or state in (State.CLAIMED, State.LOST, State.ENDING):
                assert level == logging.WARNING, sentence
    for state in (State.PRIMARY, State.SECONDARY):
        calm = {said for said, levels in found[state].items() if logging.INFO in levels}
        assert calm == {f"{state.value} of a protected pair"}
    withheld = {
        (state, said)
        for state, sentences in found.items()
        for said, levels in sentences.items()
        if "withheld" in said and logging.INFO in levels
    }
    assert withheld == {  # each pairing comes by them
        (State.PAIRING, "output withheld until the secondary has loaded a checkpoint"),
        (State.PAIRING, "whether the pair is written down is not known: output withheld"),
    }


def test_to_be_alone_is_a_warning_once() -> None:
    alone = Decision(State.SOLO, "alone, unprotected: b is not heard")
    assert severity.of_decision(ELSEWHERE, alone, ()) == logging.WARNING
    assert severity.of_decision(alone, Decision(State.SOLO, "alone"), ()) == logging.INFO
    assert severity.of_decision(ELSEWHERE, Decision(State.JOINING, "joins"), ("",)) == logging.INFO


@pytest.mark.parametrize(
    ("kind", "data", "level"),
    [
        (VmEventKind.PANICKED, {}, logging.WARNING),
        (VmEventKind.SHUTDOWN, {"guest": False}, logging.WARNING),
        (VmEventKind.SHUTDOWN, {"guest": True}, logging.INFO),
        (VmEventKind.RESET, {"guest": True}, logging.INFO),
    ],
)
def test_of_what_guests_do(kind: VmEventKind, data: dict[str, object], level: int) -> None:
    assert severity.of_event(VmEvent(kind, 0, data)) == level


# --- the protocol -----------------------------------------------------------------------------


def _fields(datagram: bytes) -> dict[str, bytes]:
    """As journald takes it apart."""
    found = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found[name.decode()] = value
        datagram = rest
    return found


@given(st.text())
def test_any_text_is_one_entry(text: str) -> None:
    fields = {"MESSAGE": text, "PRIORITY": "6", "COLO_VM": "web"}
    found = _fields(journal.entry(fields))
    assert found == {name: value.encode(errors="replace") for name, value in fields.items()}


def _record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("colo", level, __file__, 1, text, None, None)


def test_an_entry_has_priority_and_fields(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(path)
        handler = journal.JournalHandler({"COLO_VM": "web", "COLO_HOST": "a"}, path)
        handler.emit(_record(logging.WARNING, "two\nlines \udcff"))
        assert _fields(s.recv(65536)) == {
            "MESSAGE": b"two\nlines ?",
            "PRIORITY": b"4",
            "SYSLOG_IDENTIFIER": b"colo-ebpf",
            "COLO_VM": b"web",
            "COLO_HOST": b"a",
        }
        handler.emit(_record(logging.INFO, "x" * 10_000_000))
        assert len(_fields(s.recv(1 << 20))["MESSAGE"]) == 16384
        handler.close()


def test_a_journal_that_is_away_or_full_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "socket")
    handler = journal.JournalHandler({}, path)
    handler.emit(_record(logging.ERROR, "nobody there"))
    assert capsys.readouterr().err == "<3>nobody there\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(path)
        for number in range(10_000):  # more than a socket's queue holds
            handler.emit(_record(logging.INFO, f"number {number}"))
        said = capsys.readouterr().err.splitlines()
        assert said[-1] == "<6>number 9999"
        while said:
            s.setblocking(False)
            try:
                s.recv(65536)
            except BlockingIOError:
                break
        handler.emit(_record(logging.INFO, "again"))
        assert _fields(s.recv(65536))["MESSAGE"] == b"again"
    handler.close()


@pytest.mark.parametrize(
    ("level", "wanted"),
    [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (5, 7)],
)
def test_priorities(level: int, wanted: int) -> None:
    assert journal.priority(level) == wanted


def test_a_stream_that_was_redirected_is_not_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        stat = os.fstat(log.fileno())
        named = {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}
        assert journal.is_journal(log.fileno(), named)
        assert not journal.is_journal(log.fileno(), {})
        assert not journal.is_journal(log.fileno(), {"JOURNAL_STREAM": "8:1"})
        assert not journal.is_journal(0, named)
    assert not journal.is_journal(2**20, named)


def test_an_error_that_ends_a_command_has_its_priority(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "colo_ebpf.cli.main", "run", "--config", "none.toml"]
    with (tmp_path / "log").open("w+") as log:
        stat = os.fstat(log.fileno())
        for stream in (f"{stat.st_dev}:{stat.st_ino}", "8:1"):
            named = {**os.environ, "JOURNAL_STREAM": stream}
            subprocess.run(words, stderr=log, env=named, timeout=60, check=False)
        log.seek(0)
        said = "colo-ebpf: none.toml: No such file or directory\n"
        assert log.read() == f"<3>{said}{said}"


# --- a real journald --------------------------------------------------------------------------

_INSIDE = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal
"$1" >/run/journald.log 2>&1 </dev/null &
until [ -S /run/systemd/journal/socket ] && [ -S /run/systemd/journal/stdout ]; do
    kill -0 $! || { cat /run/journald.log >&2; exit 77; }
    sleep 0.1
done
"$2" "$3"
until journalctl -D /run/log/journal COLO_VM=db 2>/dev/null | grep -q last; do sleep 0.1; done
journalctl -D /run/log/journal -o json -p warning COLO_VM=web
kill $!
wait || true
"""

_SAYS = """
import logging, os, socket, sys
stream = socket.socket(socket.AF_UNIX)
stream.connect("/run/systemd/journal/stdout")
stream.sendall(b"test\\n\\n6\\n1\\n0\\n0\\n0\\n")  # as systemd opens it for a unit
os.dup2(stream.fileno(), 2)
stat = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{stat.st_dev}:{stat.st_ino}"
from colo_ebpf.control.host import journal
assert journal.begin(COLO_VM="web", COLO_HOST="a")
logging.warning("the other host died")
logging.info("all is well")
logging.error("two\\nlines")
logging.getLogger().handlers.clear()
assert journal.begin(COLO_VM="db", COLO_HOST="a")
logging.warning("of another VM")
logging.warning("last")
"""


def test_journalctl_finds_what_matters_of_one_vm(tmp_path: Path) -> None:
    require("root")
    if not JOURNALD.exists() or not shutil.which("journalctl"):
        pytest.skip("needs systemd-journald and journalctl (package systemd)")
    script = tmp_path / "says.py"
    script.write_text(_SAYS)
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", _INSIDE, "sh", str(JOURNALD), sys.executable, str(script)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode == 77:
        pytest.skip(f"journald does not run here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    said = [(e["MESSAGE"], e["PRIORITY"], e["COLO_HOST"], e["SYSLOG_IDENTIFIER"]) for e in entries]
    assert said == [
        ("the other host died", "4", "a", "colo-ebpf"),
        ("two\nlines", "3", "a", "colo-ebpf"),
    ]
