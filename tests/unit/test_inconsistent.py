# SPDX-License-Identifier: GPL-2.0-only
"""No VM starts from images that are half a copy, whoever asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.cli.main import main
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import load_config, parse_config
from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.actions import Read, StartVm
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.state.inconsistent import InconsistentImages
from colo_ebpf.errors import ControlError, StorageError, VmError
from colo_ebpf.model import VmRole
from tests.unit.toy_steps import steps_of

A, B, OTHER = "a/00000000000000aa", "b/00000000000000bb", "b/00000000000000cc"
ALONE = record.activate(record.start(record.cold("a"), A))
PAIRED = record.pair(ALONE, B, 7)
CLAIMED = record.claim(PAIRED, B)
REFUSED = "unfinished copy: the replica b/00000000000000bb was never whole"


class _Host:
    """Plane, machine and arbiter of a host on which every step succeeds."""

    def __init__(self, now: Record) -> None:
        self.now = now
        self.started: list[str] = []
        self.did: list[str] = []
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        async def nothing(*_args: object, **_words: object) -> None:
            self.did.append(name)

        return nothing

    async def read(self) -> Record:
        return self.now

    async def start(self, role: VmRole, instance: str) -> _Host:
        if self.fails:
            raise VmError("no such binary")
        self.started.append(instance)
        return self


async def test_images_of_a_replica_that_was_never_whole_start_nothing(tmp_path: Path) -> None:
    host = _Host(ALONE)
    await steps_of(host, tmp_path).run(StartVm(VmRole.SECONDARY, B))
    again = steps_of(host, tmp_path)  # after a reboot
    await again.run(Read())
    with pytest.raises(StorageError, match=REFUSED):
        await again.run(StartVm(VmRole.PRIMARY, OTHER))
    assert host.started == [B]


@pytest.mark.parametrize("whole", [PAIRED, CLAIMED, record.activate(CLAIMED)])
async def test_once_the_record_names_the_replica_its_images_are_whole(
    tmp_path: Path, whole: Record
) -> None:
    host = _Host(whole)
    steps = steps_of(host, tmp_path)
    await steps.run(StartVm(VmRole.SECONDARY, B))
    await steps.run(Read())
    await steps.run(StartVm(VmRole.PRIMARY, OTHER))
    assert host.started == [B, OTHER]


async def test_another_copy_makes_them_unfinished_again(tmp_path: Path) -> None:
    host = _Host(PAIRED)
    steps = steps_of(host, tmp_path)
    await steps.run(StartVm(VmRole.SECONDARY, B))
    await steps.run(Read())
    await steps.run(StartVm(VmRole.SECONDARY, OTHER))
    await steps.run(Read())
    with pytest.raises(StorageError, match=f"the replica {OTHER} was never whole"):
        await steps.run(StartVm(VmRole.PRIMARY, B))


async def test_no_copy_is_begun_that_could_not_be_noted(tmp_path: Path) -> None:
    host = _Host(ALONE)
    steps = steps_of(host, tmp_path)
    tmp_path.joinpath("unfinished").mkdir()
    with pytest.raises(ControlError, match="unfinished"):
        await steps.run(StartVm(VmRole.SECONDARY, B))
    assert "listen" not in host.did
    assert host.did[-1] == "kill"


async def test_a_replica_that_did_not_start_leaves_the_images_as_they_were(tmp_path: Path) -> None:
    host = _Host(ALONE)
    steps = steps_of(host, tmp_path)
    host.fails = True
    with pytest.raises(VmError):
        await steps.run(StartVm(VmRole.SECONDARY, B))
    host.fails = False
    await steps.run(StartVm(VmRole.PRIMARY, OTHER))
    assert host.started == [OTHER]


async def test_a_note_that_cannot_be_taken_back_keeps_nobody_from_taking_over(
    tmp_path: Path,
) -> None:
    tmp_path.joinpath("unfinished").mkdir()
    assert await steps_of(_Host(PAIRED), tmp_path).run(Read()) == PAIRED


def test_an_operator_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arbiter = tmp_path / "arbiter"
    arbiter.mkdir()
    text = EXAMPLE.replace("/mnt/arbiter/web", str(arbiter))
    state_dir = Path(parse_config(text, tmp_path).host.state_dir)
    text = text.replace(str(state_dir), str(tmp_path))
    file = tmp_path / "config.toml"
    file.write_text(text)
    assert load_config(file).host.state_dir == str(tmp_path)
    InconsistentImages(tmp_path).begin(B)
    assert main(["arbiter", "init", "--yes", "--config", str(file)]) == 2
    assert REFUSED in capsys.readouterr().err
    assert not list(arbiter.iterdir())
    tmp_path.joinpath("unfinished").unlink()
    assert main(["arbiter", "init", "--yes", "--config", str(file)]) == 0
