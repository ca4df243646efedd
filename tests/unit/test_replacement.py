# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf arbiter replace`: whose image counts is an operator's word, and only a fresh one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.cli import replacement
from colo_ebpf.cli.main import main
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import load_config, parse_config
from colo_ebpf.control.admin import control_socket
from colo_ebpf.control.arbiter.file import FileArbiter
from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.state.inconsistent import InconsistentImages
from colo_ebpf.errors import ArbiterError, NoDaemonError

VM, OTHER_VM = "a/00000000000000aa", "b/00000000000000bb"


class _Host:
    """Host `a` with a record that no daemon can go on from: the survivor b is lost, overlaid."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.arbiter = directory, FileArbiter(directory / "arbiter", 5000)
        text = EXAMPLE.replace("/mnt/arbiter/web", str(directory / "arbiter"))
        defaults = parse_config(text, directory).host
        for path in (defaults.state_dir, defaults.run_dir):
            text = text.replace(str(path), str(directory))
        self.config = directory / "config.toml"
        self.config.write_text(text)

    async def lost(self) -> Record:
        now = await self.arbiter.init("a")
        for move in (
            lambda r: record.start(r, VM),
            record.activate,
            lambda r: record.pair(r, OTHER_VM, 7),
            lambda r: record.claim(r, OTHER_VM),
            record.activate,
        ):
            now = await self.arbiter.swap(now, move(now))
        return now

    def replace(self, generation: int) -> int:
        words = ["arbiter", "replace", "--generation", str(generation), "--yes"]
        return main([*words, "--config", str(self.config)])


@pytest.fixture
def host(tmp_path: Path) -> _Host:
    return _Host(tmp_path)


async def test_the_image_here_is_started_next(
    host: _Host, capsys: pytest.CaptureFixture[str]
) -> None:
    old = await host.lost()
    assert (old.image, old.describe()) == ("", f"solo {OTHER_VM} active, disk overlaid")
    asked = replacement.question(load_config(host.config), old)
    assert "What a lacks of it is lost" in asked
    assert "Is the VM on b certainly ended" in asked
    assert await in_thread(host.replace, old.generation) == 0
    new = await host.arbiter.read()
    assert (new.generation, new.describe()) == (old.generation + 1, "cold, to be started by a")
    assert f"generation {new.generation}: cold, to be started by a" in capsys.readouterr().out
    assert record.start(new, VM).owner == VM


async def test_only_the_record_that_was_looked_at(
    host: _Host, capsys: pytest.CaptureFixture[str]
) -> None:
    old = await host.lost()
    assert await in_thread(host.replace, old.generation - 1) == 2
    assert "look again, then decide again" in capsys.readouterr().err
    assert await host.arbiter.read() == old


async def test_another_record_that_comes_first_stays(host: _Host) -> None:
    old = await host.lost()
    committed = await host.arbiter.swap(old, record.commit(old))
    with pytest.raises(ArbiterError, match=r"was written meanwhile: solo b/.* disk whole"):
        await replacement.write(load_config(host.config), host.arbiter, old)
    assert await host.arbiter.read() == committed


@pytest.mark.parametrize(("role", "code"), [("solo", 2), ("primary", 2), ("secondary", 0)])
async def test_not_while_the_vm_serves_here(
    host: _Host, role: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(_path: Path, _command: str) -> dict[str, Any]:
        return {"role": role}

    old = await host.lost()
    monkeypatch.setattr(control_socket, "ask", answers)
    assert await in_thread(host.replace, old.generation) == code


async def test_not_with_half_a_copy(host: _Host, capsys: pytest.CaptureFixture[str]) -> None:
    old = await host.lost()
    InconsistentImages(host.directory).begin(OTHER_VM)
    assert await in_thread(host.replace, old.generation) == 2
    assert "unfinished copy" in capsys.readouterr().err


async def test_a_daemon_that_does_not_answer_is_no_reason(
    host: _Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(path: Path, _command: str) -> dict[str, Any]:
        raise NoDaemonError(f"no daemon answers on {path}")

    old = await host.lost()
    monkeypatch.setattr(control_socket, "ask", silent)
    assert await in_thread(host.replace, old.generation) == 0


async def in_thread(what: Any, *arguments: int) -> int:
    """The command has a loop of its own."""
    return int(await asyncio.to_thread(what, *arguments))
