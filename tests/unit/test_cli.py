# SPDX-License-Identifier: GPL-2.0-only
"""The command line: what it loads, its exit codes, and what it says came of a request."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import colo_ebpf
from colo_ebpf import clock
from colo_ebpf.cli import main
from colo_ebpf.config.example import EXAMPLE
from tests.toy_daemon import ToyDaemon

# What only the daemon, the lab, the benchmarks or their like need. Loading it would be felt.
HEAVY = (
    "aiohttp",
    "asyncio",
    "bcc",
    "colo_ebpf.bench",
    "colo_ebpf.cli.bench",
    "colo_ebpf.cli.doctor",
    "colo_ebpf.cli.lab",
    "colo_ebpf.control.core.core",
    "colo_ebpf.control.admin.server",
    "colo_ebpf.control.daemon",
    "colo_ebpf.control.startup",
    "colo_ebpf.control.decision.record",
    "colo_ebpf.datapath",
    "colo_ebpf.lab",
    "colo_ebpf.storage",
    "logging",
    "pyroute2",
    "qemu",
    "ssl",
)
_LOADS = """
import sys
from colo_ebpf.cli.main import main
try:
    code = main(sys.argv[2:])
except SystemExit as e:
    code = e.code
print("\\n" + " ".join(name for name in sys.argv[1].split() if name in sys.modules))
sys.exit(code)
"""
ASKS_ONLY = (
    "status",
    "counters",
    "history --sentences",
    "mismatches",
    "checkpoint",
    "switchover",
    "start",
    "pause",
    "resume",
    "failover --force --generation 3",
)
LAST = {"epoch": 7, "cause": "operator", "pause_ms": 12.5, "reaction_ms": 1.5}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration whose control socket is `tmp_path`'s."""
    path = tmp_path / "config.toml"
    path.write_text(EXAMPLE.replace("/run/colo-ebpf/web", str(tmp_path)))
    return path


def _loaded(*words: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _LOADS, " ".join(HEAVY), *words],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("verb", ASKS_ONLY)
def test_who_only_asks_the_daemon_loads_nothing_of_it(file: Path, verb: str) -> None:
    assert _loaded(*verb.split(), "--config", str(file)) == (3, [])


@pytest.mark.parametrize(
    "words", ["--version", "config example", "status --help", "history --help"]
)
def test_what_needs_no_daemon_loads_nothing_of_it(words: str) -> None:
    assert _loaded(*words.split()) == (0, [])


@pytest.mark.parametrize("words", ["--help", "lab --help", "bench --help"])
def test_the_whole_help_tells_of_lab_and_bench(words: str) -> None:
    code, loaded = _loaded(*words.split())
    assert code == 0
    assert {"colo_ebpf.lab", "colo_ebpf.bench"} <= set(loaded)


@pytest.mark.parametrize("words", ["lab", "lab up --name x", "bench --quick"])
def test_without_the_labs_package_its_verbs_say_so(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main.main(words.split()) == main.Exit.REFUSED
    assert "this is in the package colo-ebpf-lab, which is not installed" in capsys.readouterr().err


def test_a_word_that_is_no_verb_is_answered_with_all_verbs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["labb"])
    assert ended.value.code == main.Exit.REFUSED
    assert re.search(r"choose from .*\blab\b", capsys.readouterr().err)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"colo-ebpf {colo_ebpf.__version__}\n"


# --- exit codes ---------------------------------------------------------------------------


def test_no_daemon_is_an_exit_code_of_its_own(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["status", "--config", str(file)]) == main.Exit.NO_DAEMON == 3
    assert "no daemon answers on" in capsys.readouterr().err


def test_a_daemon_that_says_no(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ToyDaemon(file.with_name("ctl.sock"), lambda _: {"error": "not here"}):
        assert main.main(["status", "--config", str(file)]) == main.Exit.REFUSED == 2
    assert capsys.readouterr().err == "colo-ebpf: not here\n"


def test_a_daemon_that_does_not_answer_is_late(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colo_ebpf.control.admin.control_socket.ANSWER_S", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(file.with_name("ctl.sock")))
        silent.listen()
        assert main.main(["status", "--config", str(file)]) == main.Exit.LATE == 4
    assert "does not answer within" in capsys.readouterr().err


def test_a_daemon_that_ends_before_it_answered(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ToyDaemon(file.with_name("ctl.sock"), lambda _: None):
        assert main.main(["status", "--config", str(file)]) == main.Exit.NO_DAEMON
    assert "ended before it had answered (0 bytes came)" in capsys.readouterr().err


# --- what came of it ----------------------------------------------------------------------


def _says(**answers: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The same to each request of a name."""
    return lambda request: {"ok": answers[request["command"].replace("-", "_")]}


def _news(**change: Any) -> dict[str, Any]:
    return {"can": True, "sentence": "protected", "pending": False, "last": None} | change


def test_a_checkpoint_says_what_came_of_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier, later = LAST | {"resumed_ns": 99}, LAST | {"epoch": 8, "resumed_ns": 101}
    news = iter(
        [
            _news(last=earlier),
            _news(last=earlier, pending=True),
            _news(last=later, pending=True),  # one that had begun before it was asked for
            _news(last=later | {"epoch": 9}),
        ]
    )

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        return {"ok": next(news) if request["command"] == "checkpoint-news" else {"at_ns": 100}}

    with ToyDaemon(file.with_name("ctl.sock"), answer):
        assert main.main(["checkpoint", "--config", str(file)]) == 0
    said = capsys.readouterr().out
    assert said == "epoch 9 is loaded: the VM stood for 12.5 ms, 1.5 ms after its cause, operator\n"


def test_a_checkpoint_that_is_not_taken_in_time(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = _says(checkpoint={"at_ns": 100}, checkpoint_news=_news(pending=True))
    with ToyDaemon(file.with_name("ctl.sock"), answer):
        code = main.main(["checkpoint", "--timeout", "0.01", "--config", str(file)])
    assert code == main.Exit.LATE
    assert "no checkpoint was loaded within 0.01 s: protected" in capsys.readouterr().err


def test_a_pair_that_ends_before_its_checkpoint(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    news = _news(can=False, sentence="alone, unprotected")
    with ToyDaemon(
        file.with_name("ctl.sock"), _says(checkpoint={"at_ns": 100}, checkpoint_news=news)
    ):
        assert main.main(["checkpoint", "--config", str(file)]) == main.Exit.REFUSED
    assert "the pair ended before its checkpoint: alone, unprotected" in capsys.readouterr().err


def test_a_switchover_that_is_not_done_in_time(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = _says(
        may_switch_over={"question": "?"},
        switchover={"token": "t"},
        planned={"token": "t", "sentence": "handing over", "answer": None},
    )
    with ToyDaemon(file.with_name("ctl.sock"), answer):
        words = ["switchover", "--yes", "--timeout", "0.01", "--config", str(file)]
        assert main.main(words) == main.Exit.LATE
    assert "not done within 0.01 s; it goes on: handing over" in capsys.readouterr().err


def test_a_daemon_that_forgot_what_was_asked(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = _says(
        start={"token": "t"}, planned={"token": None, "sentence": "alone", "answer": None}
    )
    with ToyDaemon(file.with_name("ctl.sock"), answer):
        assert main.main(["start", "--config", str(file)]) == main.Exit.LATE
    assert "was started anew and forgot" in capsys.readouterr().err


def test_a_switchover_looks_whether_it_can_before_it_asks(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unasked(_: str) -> str:
        raise AssertionError("asked an operator about what cannot be")

    monkeypatch.setattr("builtins.input", unasked)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    refusal = {"error": "no switchover: b is not heard"}
    with ToyDaemon(file.with_name("ctl.sock"), lambda _: refusal) as daemon:
        assert main.main(["switchover", "--config", str(file)]) == main.Exit.REFUSED
    assert [request["command"] for request in daemon.asked] == ["may-switch-over"]
    assert capsys.readouterr().err == "colo-ebpf: no switchover: b is not heard\n"


@pytest.mark.parametrize(("at_ns", "ns"), [(900, 100), (1000, 0), (2600, 0)])
def test_what_came_while_it_was_looked_at_is_not_of_the_future(at_ns: int, ns: int) -> None:
    assert clock.ago_ns(at_ns, now_ns=1000) == ns
