# SPDX-License-Identifier: GPL-2.0-only
"""Changes of state, told to the operator's command by a helper that nobody waits for."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import check_paths, parse_config
from colo_ebpf.config.schema import Config
from colo_ebpf.control import settings
from colo_ebpf.control.admin import operations
from colo_ebpf.control.decision.actions import Decision, State
from colo_ebpf.control.host.event_helper import MOST_WAITING
from colo_ebpf.control.host.state_events import Change, Events
from colo_ebpf.errors import ConfigError
from tests.sim.host import Host
from tests.sim.test_pair import _until_protected
from tests.sim.world import World

LONG_MS = 60_000
CHANGE = Change("secondary", "claimed", "a is not heard on any path", 8)


def _script(directory: Path, text: str) -> Path:
    path = directory / "notify"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def _events(command: Path, timeout_ms: int = LONG_MS) -> Events:
    return Events((str(command), "an argument; with $shell"), timeout_ms, "web", "b", "a")


@asynccontextmanager
async def _started(events: Events) -> AsyncIterator[Events]:
    events.start()
    try:
        yield events
    finally:
        events.end()


class _Fifo:
    """What commands write, line by line; each waits until it is read."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)  # open at both ends: no end of file between commands
        self._reader = os.fdopen(self._fd, "rb", buffering=0)

    async def line(self) -> str:
        def read() -> str:
            data = b""
            while not data.endswith(b"\n"):
                data += self._reader.read(1)
            return data.decode().rstrip("\n")

        return await asyncio.wait_for(asyncio.to_thread(read), 60)

    def close(self) -> None:
        self._reader.close()


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[_Fifo]:
    one = _Fifo(tmp_path / "fifo")
    yield one
    one.close()


# --- what the command is told -----------------------------------------------------------------


async def test_the_command_knows_what_changed_and_why(tmp_path: Path, fifo: _Fifo) -> None:
    text = f"""
        {{ echo "$1"; env | grep '^COLO_[A-Z]*=' | sort; cat; echo; }} > {tmp_path}/told
        echo done > {tmp_path}/fifo
    """
    async with _started(_events(_script(tmp_path, text))) as events:
        events.tell(CHANGE)
        assert await fifo.line() == "done"
    assert (tmp_path / "told").read_text().splitlines() == [
        "an argument; with $shell",
        "COLO_GENERATION=8",
        "COLO_HOST=b",
        "COLO_NEW=claimed",
        "COLO_OLD=secondary",
        "COLO_PEER=a",
        "COLO_VM=web",
        "COLO_WHY=a is not heard on any path",
        "",
    ]


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("x" * 100_000, "x" * 500),
        ("a\0b", "a b"),
        ("\ud800 \udcff", "? ?"),
        ("é$(reboot)`;'\"", "é$(reboot)`;'\""),
        ("\N{SNOWMAN}" * 600, "\N{SNOWMAN}" * 500),
    ],
    ids=["long", "zero", "surrogates", "shell", "wide"],
)
async def test_any_sentence_can_be_told(tmp_path: Path, fifo: _Fifo, why: str, told: str) -> None:
    script = _script(tmp_path, f"printf '%s\\n' \"$COLO_WHY\" > {tmp_path}/fifo")
    async with _started(_events(script)) as events:
        events.tell(Change("solo", "stuck", why, 1))
        assert await fifo.line() == told


async def test_changes_are_told_one_by_one_in_order(tmp_path: Path, fifo: _Fifo) -> None:
    script = _script(tmp_path, f"echo $COLO_GENERATION > {tmp_path}/fifo")
    async with _started(_events(script)) as events:
        for number in range(10):
            events.tell(Change("a", "b", "why", number))
        assert [await fifo.line() for _ in range(10)] == [str(n) for n in range(10)]


def test_without_a_command_nothing_is_started() -> None:
    events = Events((), LONG_MS, "web", "b", "a")
    events.start()
    events.tell(CHANGE)
    events.end()


# --- bounds: the helper as a process, its log on stderr ---------------------------------------


class _Helper:
    """The helper alone, as the daemon starts it."""

    def __init__(self, command: Path, timeout_ms: int = LONG_MS) -> None:
        words = [sys.executable, "-m", "colo_ebpf.control.host.event_helper", "web", "b"]
        self.process = subprocess.Popen(
            [*words, str(timeout_ms), str(command)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def tell(self, *generations: int) -> None:
        assert self.process.stdin
        for number in generations:
            change = {"COLO_OLD": "a", "COLO_NEW": f"n{number}", "COLO_GENERATION": str(number)}
            self.process.stdin.write(json.dumps(change) + "\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """Its log."""
        _, log = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, log
        return log


async def test_of_many_that_wait_the_newest_are_told(tmp_path: Path, fifo: _Fifo) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    text = f"echo $COLO_GENERATION > {tmp_path}/fifo; [ $COLO_GENERATION != 0 ] || read l < {go}"
    helper = _Helper(_script(tmp_path, text))
    helper.tell(0)
    assert await fifo.line() == "0"
    helper.tell(*range(1, MOST_WAITING + 4))
    assert helper.process.stderr
    for lost in (1, 2, 3):
        line = await asyncio.to_thread(helper.process.stderr.readline)
        assert line.endswith(f"takes too long: the change from a to n{lost} is not told\n")
    await asyncio.to_thread(go.write_text, "go\n")
    told = [await fifo.line() for _ in range(MOST_WAITING)]
    assert told == [str(n) for n in range(4, MOST_WAITING + 4)]
    assert helper.end() == ""


def test_failures_are_logged_once_until_it_works_again(tmp_path: Path) -> None:
    text = "[ $COLO_GENERATION -gt 2 ] || { echo no mail >&2; exit 3; }"
    script = _script(tmp_path, text)
    helper = _Helper(script)
    helper.tell(1, 2, 3, 4, 1, 2)
    said = [line.partition("notify.command ")[2] for line in helper.end().splitlines()]
    failed = f"{script}: exit code 3 (no mail); further failures are not logged"
    assert said == [failed, f"{script} works again", failed]


@pytest.mark.parametrize(
    ("name", "says"),
    [("none", "cannot be run: No such file or directory"), ("data", "cannot be run: Permission")],
)
def test_a_command_that_cannot_be_run_is_one_sentence(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "data").write_text("no program")
    helper = _Helper(tmp_path / name)
    helper.tell(1, 2)
    log = helper.end()
    assert (says in log, log.count("\n")) == (True, 1)


async def test_one_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    helper = _Helper(_script(tmp_path, f"exec 9> {alive}; sleep 1000 & sleep 1000"), 2000)
    helper.tell(1)
    assert helper.process.stderr
    line = await asyncio.to_thread(helper.process.stderr.readline)
    assert "was killed after 2000 ms" in line
    os.set_blocking(reader, True)
    with os.fdopen(reader, "rb") as pipe:
        await asyncio.to_thread(pipe.read)
    helper.end()


def test_when_the_daemon_has_gone_the_rest_has_one_timeout(tmp_path: Path) -> None:
    helper = _Helper(_script(tmp_path, "sleep 1000"), 500)
    helper.tell(*range(10))
    log = helper.end()
    assert "the daemon has ended, what was left is not told" in log


# --- the daemon waits for nothing -------------------------------------------------------------


def _helper_of(events: Events) -> subprocess.Popen[bytes]:
    assert events._process is not None
    return events._process


async def test_a_helper_that_stands_takes_what_it_can_and_the_rest_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with _started(_events(_script(tmp_path, "exit 0"))) as events:
        helper = _helper_of(events)
        helper.send_signal(signal.SIGSTOP)
        try:
            for _ in range(2_000):  # some 200 bytes each: more than a pipe holds
                events.tell(CHANGE)
        finally:
            helper.send_signal(signal.SIGCONT)
        said = [record.message for record in caplog.records]
        assert said == ["changes of state are not told: their helper takes no more"]


async def test_a_helper_that_died_is_missed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with _started(_events(_script(tmp_path, "exit 0"))) as events:
        _helper_of(events).kill()
        await asyncio.to_thread(_helper_of(events).wait)
        for _ in range(3):
            events.tell(CHANGE)
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert "their helper has ended; a restart of the daemon starts another" in said[0]


async def test_a_helper_that_cannot_be_started_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    async with _started(_events(tmp_path / "notify")) as events:
        events.tell(CHANGE)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert os.strerror(errno.ENOENT) in caplog.text


async def test_it_inherits_neither_priority_nor_descriptors(tmp_path: Path, fifo: _Fifo) -> None:
    """As real-time as the daemon, where that may be; and with a descriptor like QEMU's."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    if os.geteuid() == 0:
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(1))
    try:
        text = f"""
            {{ cut -d' ' -f19,41 /proc/self/stat; ls /proc/self/fd | wc -l; }} > {tmp_path}/told
            xargs < {tmp_path}/told > {tmp_path}/fifo
        """
        with (tmp_path / "qemu").open("w"):
            async with _started(_events(_script(tmp_path, text))) as events:
                events.tell(CHANGE)
                nice, policy, descriptors = (await fifo.line()).split()
    finally:
        os.sched_setscheduler(0, before[0], before[1])
    assert (nice, policy, descriptors) == ("10", "0", "4")  # 0, 1, 2 and that of `ls`


# --- what is a change -------------------------------------------------------------------------


def test_every_change_of_a_pairs_life_is_told_once() -> None:
    world, told = World(7), {"a": [], "b": []}  # type: ignore[var-annotated]
    for host in [Host(world, name) for name in "ab"]:
        host.start_daemon()
        core = host.core
        assert core is not None

        def note(old: State, new: Decision, name: str = host.name) -> None:
            told[name].append((old.value, new.state.value, new.sentence))

        core._changed = note
        told[host.name].append(("unknown", core.decision.state.value, core.decision.sentence))
    assert _until_protected(world, 20_000)
    a = world.hosts["a"]
    assert a.core is not None
    operations.switch_over(a.core, a.now_ns)
    world.run(20_000 * 1_000_000, lambda: None)
    for name, changes in told.items():
        assert all(old != new for old, new, _ in changes[1:]), name
        chain = [new for _, new, _ in changes]
        assert [old for old, _, _ in changes[1:]] == chain[:-1], "none is left out"
    assert {"starting", "solo", "pairing", "primary", "lost"} <= {new for _, new, _ in told["a"]}
    assert {"standby", "joining", "secondary", "claimed"} <= {new for _, new, _ in told["b"]}


# --- the configuration ------------------------------------------------------------------------


def _parsed(table: str) -> Config:
    return parse_config(f"{EXAMPLE}\n[notify]\n{table}\n", Path("file"))


def test_the_table_of_the_configuration_reaches_the_helper() -> None:
    events = settings.events(_parsed('command = ["/bin/n", "x"]\ntimeout-ms = 5'))
    assert (events._command, events._timeout_ms) == (("/bin/n", "x"), 5)
    assert events._names == {"COLO_VM": "web", "COLO_HOST": "a", "COLO_PEER": "b"}
    assert settings.events(parse_config(EXAMPLE, Path("file")))._command == ()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('command = ["notify"]', r"notify.command: 'notify' must be the whole path"),
        ('command = [""]', r"notify.command: '' must be the whole path"),
        ('command = "notify"', r"notify.command: Expected `array`"),
        ('command = ["/bin/n", "a\\u0000b"]', r"notify.command: a word of it has a zero byte"),
        ('comand = ["/bin/n"]', r"unknown key 'comand' in \[notify\]; did you mean 'command'"),
        ("timeout-ms = 0", r"notify.timeout-ms: Expected `int` >= 1"),
    ],
)
def test_a_bad_table_is_one_sentence(table: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as e:
        _parsed(table)
    assert "\n" not in str(e.value)


def test_a_command_that_is_not_there_is_refused_before_the_daemon_starts(tmp_path: Path) -> None:
    parsed = _parsed(f'command = ["{tmp_path}/none"]')
    with pytest.raises(ConfigError, match="does not exist"):
        check_paths(parsed, Path("file"))
