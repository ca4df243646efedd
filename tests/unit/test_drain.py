# SPDX-License-Identifier: GPL-2.0-only
"""A host is emptied whole or not at all; pauses end by themselves, and say why they are."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from colo_ebpf.cli import drain, main
from colo_ebpf.cli.parser import parser
from colo_ebpf.cli.vms import Asked
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.control.admin import operations
from colo_ebpf.control.admin.server import ControlServer
from colo_ebpf.control.peer.pause import MOST_WHY_BYTES, Pause
from colo_ebpf.control.state.files import PauseFile
from colo_ebpf.errors import ControlError
from tests.capabilities import ROOT
from tests.sim.test_planned import _pair, _rests
from tests.toy_daemon import ToyDaemon

NO_PAUSE = {"until_s": 0, "why": "", "sentence": "protection is resumed"}


def _status(role: str, **change: Any) -> dict[str, Any]:
    state = {"none": "standby"}.get(role, role)
    usual = {"role": role, "state": state, "protected": True, "paused": False, "host": "a"}
    said = {"unprotected_why": "", "sentence": "protected", "pause": NO_PAUSE}
    return {**usual, **said, **change}


def _asked(name: str, status: dict[str, Any] | None, error: str = "") -> Asked:
    return Asked(name, Path(f"/{name}.toml"), status, error)


def _of(**statuses: dict[str, Any]) -> list[Asked]:
    return [_asked(name, status) for name, status in statuses.items()]


# --- what is to be done -------------------------------------------------------------------


def test_what_serves_here_is_moved_and_all_are_paused() -> None:
    found = drain.plan(_of(web=_status("primary"), db=_status("secondary"), new=_status("none")))
    assert found == drain.Plan(move=("web",), pause=("web", "db", "new"))


def test_one_that_is_unprotected_keeps_all_of_them_here() -> None:
    alone = _status("solo", protected=False, unprotected_why="b is not heard")
    with pytest.raises(ControlError) as raised:
        drain.plan(_of(web=_status("primary"), db=alone))
    assert str(raised.value) == (
        "nothing was moved: db serves here and is not protected: b is not heard"
    )


def test_a_pair_that_is_being_made_is_not_there_yet() -> None:
    pairing = _status("primary", state="pairing", protected=False, sentence="copying")
    with pytest.raises(ControlError, match="db serves here and is not protected: copying"):
        drain.plan(_of(db=pairing))


def test_what_is_not_known_is_not_left_behind() -> None:
    with pytest.raises(ControlError, match="web: what it does is not known: no daemon answers"):
        drain.plan([_asked("web", None, "no daemon answers")])


def test_a_paused_pair_is_moved_and_stays_as_its_operator_wanted_it() -> None:
    paused = _status("primary", protected=False, paused=True)
    assert drain.plan(_of(web=paused)) == drain.Plan(move=("web",))


def test_one_that_its_guest_powered_off_is_left_alone() -> None:
    assert drain.plan(_of(web=_status("none", state="off", protected=False))) == drain.Plan()


def test_undo_ends_its_own_pauses_only() -> None:
    def paused(why: str) -> dict[str, Any]:
        return _status("secondary", paused=True, pause={**NO_PAUSE, "why": why})

    statuses = _of(web=paused("drain of a"), db=paused("drain of b"), x=_status("secondary"))
    assert drain.undo([*statuses, _asked("y", None)]) == drain.Plan(resume=("web",))


# --- the command --------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory with the configuration of one VM, whose control socket is `tmp_path`'s."""
    (tmp_path / "vms").mkdir()
    text = EXAMPLE.replace("/run/colo-ebpf/web", str(tmp_path))
    (tmp_path / "vms" / "web.toml").write_text(text)
    return tmp_path


def _daemon(said: dict[str, Any]) -> Any:
    """That changes places, and keeps the pause it is told in `said`."""

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        name = request["command"]
        if name in ("pause", "resume"):
            said["paused"] = name == "pause"
            said["pause"] = {**NO_PAUSE, "why": request.get("why", "")}
            sentence = "protection is paused" if said["paused"] else "protection is resumed"
            peer = {"peer": "b", "peer_heard": True, "peer_agrees": True}
            return {"ok": {"paused": said["paused"], "sentence": sentence, **peer}}
        done = {"token": "t", "done": True, "sentence": "b serves now", "outage_ms": 31.0}
        answers: dict[str, Any] = {
            "status": said,
            "may-switch-over": {"question": "?"},
            "switchover": {"token": "t"},
            "planned": {"token": "t", "sentence": "handing over", "answer": done},
        }
        return {"ok": answers[name]}

    return answer


def test_drain_and_back(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = _status("primary")
    words = ["drain", "--directory", str(host)]
    with ToyDaemon(host / "ctl.sock", _daemon(said)) as daemon:
        assert main.main([*words, "--yes"]) == 0
        names = [request["command"] for request in daemon.asked]
        assert names == ["status", "may-switch-over", "switchover", "planned", "pause"]
        assert daemon.asked[-1]["why"] == "drain of a"
        assert "b serves now; nothing left for 31 ms" in capsys.readouterr().out
        said.update(role="secondary", state="secondary")
        assert main.main([*words, "--undo"]) == 0
        assert daemon.asked[-1]["command"] == "resume"
        assert main.main([*words, "--undo"]) == 0
    assert "nothing is to be done" in capsys.readouterr().out


def test_drain_asks_first(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ToyDaemon(host / "ctl.sock", _daemon(_status("primary"))) as daemon:
        assert main.main(["drain", "--directory", str(host)]) == main.Exit.REFUSED
    assert [request["command"] for request in daemon.asked] == ["status"]
    assert "(web), unprotected until `colo-ebpf drain --undo`? Not a terminal" in (
        capsys.readouterr().err
    )


def test_a_vm_that_does_not_go_is_named(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["command"] == "status":
            return {"ok": _status("primary")}
        return {"error": "no switchover: b is not heard"}

    with ToyDaemon(host / "ctl.sock", answer):
        assert main.main(["drain", "--yes", "--directory", str(host)]) == main.Exit.REFUSED
    assert "web: no switchover: b is not heard; `colo-ebpf drain --undo`" in capsys.readouterr().err


# --- pauses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "length_s"), [("90s", 90), ("30m", 1800), ("4h", 14400), ("2d", 172800)]
)
def test_a_pause_has_a_length_and_a_reason(host: Path, words: str, length_s: int) -> None:
    file, before = host / "vms" / "web.toml", time.time()
    with ToyDaemon(host / "ctl.sock", _daemon(_status("primary"))) as daemon:
        line = ["pause", "--for", words, "--why", "new kernel", "--config", str(file)]
        assert main.main(line) == 0
    (asked,) = daemon.asked
    assert asked["why"] == "new kernel"
    assert int(before) + length_s <= asked["until_s"] <= time.time() + length_s


@pytest.mark.parametrize("words", ["30", "m", "-1m", "0m", "1w", "1.5h", "9999999s", "٣m", ""])
def test_what_is_no_length_is_refused(words: str) -> None:
    with pytest.raises(SystemExit):
        parser(["pause"]).parse_args(["pause", f"--for={words}"])


def test_a_pause_ends_by_itself_on_both_hosts() -> None:
    world = _pair(11)
    a, b = world.hosts["a"], world.hosts["b"]
    assert a.core is not None and b.core is not None
    operations.pause(a.core, True, a.now_ns, until_s=1000, why="new kernel")
    _rests(world, 1)
    assert b.core.pause == a.core.pause == Pause(1, True, 1000, "new kernel")
    told = "protection is paused until 1970-01-01 00:16:40 UTC: new kernel"
    assert told in [sentence for _, sentence in b.core.history]
    for host in (a, b):
        assert host.core is not None
        operations.end_pause(host.core, 999.9, host.now_ns)
        assert host.core.pause.on
        operations.end_pause(host.core, 1000.0, host.now_ns)
    assert a.core.pause == b.core.pause == Pause(2, False)


_AFTER_ALL_TIME_S = 253_402_300_800  # the year 10000, which no calendar here has


@pytest.mark.parametrize("until_s", [-1, _AFTER_ALL_TIME_S, 1 << 70])
def test_an_end_that_no_calendar_has_is_refused_wherever_it_comes_from(
    tmp_path: Path, until_s: int
) -> None:
    daemon = SimpleNamespace(core=None, status=dict)
    asked = json.dumps({"command": "pause", "until_s": until_s}).encode()
    answer = asyncio.run(ControlServer(cast(Any, daemon), tmp_path / "ctl.sock")._answer(asked, 0))
    assert answer["error"].startswith("until_s: seconds of Unix time")
    (tmp_path / "pause").write_text(f'{{"number":7,"on":true,"until_s":{until_s}}}')
    with pytest.raises(ControlError, match="does not say whether protection is paused"):
        PauseFile(tmp_path).load()


def test_the_last_end_that_can_be_said_is_told() -> None:
    last = Pause(1, True, _AFTER_ALL_TIME_S - 1)
    assert last.sentence() == "protection is paused until 9999-12-31 23:59:59 UTC"


def test_a_pause_without_an_end_has_none() -> None:
    assert not Pause(1, True).over(1e12)
    assert not Pause(2, False, 5).over(1e12)


def test_the_same_word_twice_is_one() -> None:
    first = Pause().next(True, 1000, "x")
    assert first.next(True, 1000, "x") is first
    assert first.next(True).number == 2, "another end is another word"
    assert first.next(False) == Pause(2, False)


def test_two_hosts_that_did_not_hear_each_other_agree_in_the_end() -> None:
    said = [Pause(1, True, 5, "a"), Pause(1, True, 9, "b"), Pause(1, True), Pause(1, False)]
    newest = [one for one in said if all(one.newer_than(other) for other in said if other != one)]
    assert newest == [Pause(1, True)], "the one that ends last"
    assert not said[0].newer_than(said[0])


def test_it_is_kept_and_what_was_kept_before_is_read(tmp_path: Path) -> None:
    file, word = PauseFile(tmp_path), Pause(3, True, 99, '"' * MOST_WHY_BYTES)
    file.load()
    before = (tmp_path / "pause").stat()
    file.keep(word)
    after = (tmp_path / "pause").stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size), "it takes no room"
    assert file.load() == word
    (tmp_path / "pause").write_text('{"number":7,"on":true}')
    assert file.load() == Pause(7, True)


# --- the unit -----------------------------------------------------------------------------


def test_the_unit_drains_before_daemons_are_stopped() -> None:
    """What is started later is stopped earlier."""
    unit = (ROOT / "packaging" / "colo-ebpf-drain.service").read_text()
    for verb in re.findall(r"^Exec\w+=-?/usr/bin/colo-ebpf (.+)$", unit, re.MULTILINE):
        parser().parse_args(verb.split())
    assert "ExecStop=/usr/bin/colo-ebpf drain --yes" in unit
    for name in ("colo-ebpf.service", "colo-ebpf@.service"):
        assert "Before=colo-ebpf-drain.service" in (ROOT / "packaging" / name).read_text()
