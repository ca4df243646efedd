# SPDX-License-Identifier: GPL-2.0-only
"""The pair's key is changed, on one host after the other, and no datagram is refused."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.cli import key as command
from colo_ebpf.cli import vms
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import load_config
from colo_ebpf.control import settings
from colo_ebpf.control.admin import control_socket
from colo_ebpf.control.key_keeper import KeyKeeper
from colo_ebpf.control.peer.envelope import Seal
from colo_ebpf.control.peer.key_ring import KeyRing, name_of
from colo_ebpf.control.peer.link_keys import LinkKeys
from colo_ebpf.control.peer.state import Path as Way
from colo_ebpf.control.peer.state import PeerState, PeerView, Speech
from colo_ebpf.errors import ConfigError, NotInTimeError

S = 1_000_000_000
OLD, NEW = b"the old key.....", b"the new key....."


@dataclass
class _Core:
    peer: PeerView
    link: LinkKeys
    keys: list[str]

    def hears_keys(self, names: list[str]) -> None:
        self.keys = names

    def agreed_on(self, link: LinkKeys) -> None:
        self.link = link


class _Host:
    """What of a daemon has to do with keys."""

    def __init__(self, directory: Path, name: str, peer: str) -> None:
        directory = directory / name
        directory.mkdir()
        self.name, self.peer_name = name, peer
        self.key_file = directory / "key"
        self.write(self.key_file, OLD)
        self.file = directory / "web.toml"
        words = EXAMPLE.replace("/etc/colo-ebpf/key", str(self.key_file))
        self.file.write_text(words.replace("/run/colo-ebpf/web", str(directory)))
        self.runs = 0
        self.start()

    @staticmethod
    def write(path: Path, key: bytes, mode: int = 0o600) -> None:
        path.write_bytes(key)
        path.chmod(mode)

    @property
    def following(self) -> Path:
        return self.key_file.with_name("key.next")

    def start(self) -> None:
        self.runs += 1
        boot = f"{self.name}{self.runs}"
        seal = Seal(OLD)
        self.view = PeerView("web", self.peer_name, boot, seal, started_ns=0)
        self.speech = Speech(seal)
        self.core: Any = _Core(self.view, LinkKeys(boot), [])
        config = load_config(self.file)
        read = partial(settings.key_ring, config)
        files = settings.key_files(config)
        self.keeper = KeyKeeper(files, read, self.core, seal=seal, speech=self.speech, link=None)

    def says(self) -> bytes:
        state = PeerState(
            vm="web",
            host=self.name,
            boot=self.view.boot,
            echo=self.view.echo,
            keys=self.core.keys,
        )
        return self.speech.say(state)


class _Pair:
    def __init__(self, directory: Path) -> None:
        self.a, self.b = _Host(directory, "a", "b"), _Host(directory, "b", "a")
        self.now_ns = 0
        self.run()

    def run(self, seconds: int = 4) -> None:
        for _ in range(seconds * 10):
            self.now_ns += S // 10
            for one, other in ((self.a, self.b), (self.b, self.a)):
                other.view.receive(one.says(), Way.LINK, self.now_ns)
                one.keeper.look(self.now_ns)
        for one in (self.a, self.b):
            assert not one.view.refusals, "nothing was refused"
            assert one.view.age_ns(Way.LINK, self.now_ns) < S // 2

    def changed(self) -> list[bool]:
        return [one.keeper.status()["changed"] for one in (self.a, self.b)]


@pytest.fixture
def pair(tmp_path: Path) -> _Pair:
    return _Pair(tmp_path)


def test_a_key_is_spoken_once_the_other_host_hears_it() -> None:
    ring = KeyRing(OLD, NEW)
    assert ring.spoken([]) == OLD
    assert ring.spoken([name_of(OLD)]) == OLD
    assert ring.spoken([name_of(OLD), name_of(NEW)]) == NEW
    assert ring.find(name_of(NEW)) == NEW
    assert KeyRing(OLD).find(name_of(NEW)) is None
    assert name_of(OLD) != name_of(NEW)


@pytest.mark.parametrize("reads_before", [0, 1, 2])
def test_the_new_key_takes_its_place_while_the_files_are_read(
    pair: _Pair, monkeypatch: pytest.MonkeyPatch, reads_before: int
) -> None:
    """As found: the old key from before, and no key to follow it: the peer was refused."""
    a, reads, read = pair.a, 0, settings.read_key
    a.write(a.following, NEW)

    def take_its_place() -> None:
        if reads == reads_before and a.following.exists():
            a.following.replace(a.key_file)

    def reading(path: Path) -> bytes:
        nonlocal reads
        take_its_place()
        reads += 1
        found = read(path)
        take_its_place()
        return found

    monkeypatch.setattr(settings, "read_key", reading)
    try:
        ring = settings.key_ring(load_config(a.file))
    except ConfigError:
        return  # the keys that are known stay in force
    assert NEW in ring.heard


def test_one_host_after_the_other(pair: _Pair) -> None:
    a, b = pair.a, pair.b
    a.write(a.following, NEW)
    pair.run()
    assert a.speech.pair_key == OLD
    assert pair.changed() == [False, True]
    b.write(b.following, NEW)
    pair.run()
    assert a.speech.pair_key == b.speech.pair_key == NEW
    assert pair.changed() == [True, True]
    assert a.core.link.key == name_of(NEW), "the link's keys are made of it"
    a.following.replace(a.key_file)
    pair.run()
    b.following.replace(b.key_file)
    pair.run()
    assert a.keeper.ring == b.keeper.ring == KeyRing(NEW)


@pytest.mark.parametrize("when", range(4))
@pytest.mark.parametrize("who", ["a", "b"])
def test_a_daemon_may_restart_at_any_step(pair: _Pair, when: int, who: str) -> None:
    a, b = pair.a, pair.b
    steps = [
        lambda: a.write(a.following, NEW),
        lambda: b.write(b.following, NEW),
        lambda: a.following.replace(a.key_file),
        lambda: b.following.replace(b.key_file),
    ]
    for number, step in enumerate(steps):
        step()
        pair.run(2)
        if number == when:
            getattr(pair, who).start()
            for one in (a, b):
                one.view.refusals.clear()
            for _ in range(30):  # greetings; what the run before says may be refused
                pair.now_ns += S // 10
                for one, other in ((a, b), (b, a)):
                    other.view.receive(one.says(), Way.LINK, pair.now_ns)
                    one.keeper.look(pair.now_ns)
            for one in (a, b):
                one.view.refusals.clear()
        pair.run(2)
    assert a.speech.pair_key == b.speech.pair_key == NEW


@pytest.mark.parametrize("wrong", ["open to others", "short"])
def test_a_file_that_is_wrong_changes_nothing(
    pair: _Pair, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for one in (pair.a, pair.b):
        if wrong == "short":
            one.write(one.following, b"short")
        else:
            one.write(one.following, NEW, 0o640)
    pair.run()
    assert pair.a.keeper.ring == KeyRing(OLD)
    assert len(caplog.messages) == 2
    assert all("the keys stay as they are" in one for one in caplog.messages)


# --- the command ----------------------------------------------------------------------------


@pytest.fixture
def alone(pair: _Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Pair:
    """The command finds these hosts' daemons, and no other VM."""
    monkeypatch.setattr(vms, "DIRECTORY", tmp_path / "none")

    def ask(socket: Path, _verb: str) -> dict[str, Any]:
        host = pair.a if socket.parent.name == "a" else pair.b
        return {"key": host.keeper.status()}

    monkeypatch.setattr(control_socket, "ask", ask)
    return pair


def test_the_command_goes_on_step_by_step(alone: _Pair) -> None:
    a, b = alone.a, alone.b
    made = command.rotate(a.file, None)
    assert f"ssh b colo-ebpf key rotate --from - < {a.following}" in command.readable(made)
    assert a.following.stat().st_mode & 0o777 == 0o600
    alone.run()
    with pytest.raises(NotInTimeError, match="b does not speak the new key yet"):
        command.rotate(a.file, None)
    taken = command.rotate(b.file, command.read(a.following))
    assert taken["step"] == "taken"
    alone.run()
    assert command.rotate(a.file, None)["step"] == "done"
    assert not a.following.exists()
    alone.run()
    assert command.rotate(b.file, None)["step"] == "done"
    alone.run()
    assert a.keeper.ring == b.keeper.ring
    assert a.keeper.ring.current != OLD
    assert os.listdir(a.key_file.parent) == os.listdir(b.key_file.parent)


def test_a_new_key_that_is_short_is_refused(alone: _Pair, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the new key has 5 bytes"):
        command.rotate(alone.a.file, b"short")
    assert not alone.a.following.exists()
    with pytest.raises(ConfigError, match="No such file"):
        command.read(tmp_path / "nothing")
