# SPDX-License-Identifier: GPL-2.0-only
"""A daemon that starts again takes over the programs that are loaded, or makes others in whole."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colo_ebpf.datapath.bpf import loader, syscalls
from colo_ebpf.datapath.net.hooks import Hook
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.model import VmRole
from tests.bpf.attached import numbers
from tests.bpf.frames import payload, segment
from tests.bpf.rig import Rig, established

_FLOWS = 512  # a rig of its own: its pins do not outlive these tests
_START = """
import json, pickle, sys
from pathlib import Path
from colo_ebpf.datapath.bpf import compiler, kernel_headers, syscalls
from colo_ebpf.datapath.plane import DataPlane
def none(*_): raise SystemExit("the headers are looked for")
kernel_headers.find = none
plane = DataPlane.open(pickle.loads(sys.stdin.buffer.read()))
assert "bcc" not in sys.modules
found = {name: syscalls.program_info(fd).number for name, fd in plane.programs.items()}
print(json.dumps([compiler.version(), found]))
"""


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A host whose VM runs."""
    with Rig(flows=_FLOWS) as rig:
        rig.pair(7)
        yield rig
    rig.close()


def _numbers(plane: DataPlane) -> dict[str, int]:
    return {name: syscalls.program_info(fd).number for name, fd in plane.programs.items()}


def _again(rig: Rig) -> DataPlane:
    """The daemon that comes next."""
    rig.plane.close()
    rig._bed.plane = rig.plane = DataPlane.open(rig.plane._spec)
    return rig.plane


def _attached(rig: Rig) -> dict[str, int]:
    """Numbers of the programs on the VM's first tap."""
    return {name: number for hook in Hook for name, number in numbers("tap0", hook).items()}


def _sets(rig: Rig) -> list[Path]:
    return sorted(path for path in rig._pins.glob("*code*"))


def test_a_start_beside_a_vm_makes_no_programs(rig: Rig) -> None:
    before = _numbers(rig.plane)
    assert _numbers(_again(rig)) == before
    assert (rig.plane.turn().epoch, len(_sets(rig))) == (7, 1)


def test_it_needs_neither_compiler_nor_headers(rig: Rig, tmp_path: Path) -> None:
    package = tmp_path / "bcc"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('there is no bcc here')\n")
    done = subprocess.run(
        [sys.executable, "-c", _START],
        input=pickle.dumps(rig.plane._spec),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}", "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == ["", _numbers(rig.plane)]


def test_held_frames_leave_behind_a_restart() -> None:
    with established(slots=512) as rig:
        rig.from_vm(segment(1001, b"hello", ack=5001))
        rig.from_vm(segment(1006, b" world", ack=5001))
        assert rig.to_client() == []
        before = _numbers(rig.plane)
        plane = _again(rig)
        rig.from_peer(segment(1001, b"hello", ack=5001), 1)  # before a role is taken
        assert payload(rig.to_client()) == b"hello"
        asyncio.run(plane.take_role(VmRole.PRIMARY))
        rig.from_peer(segment(1006, b" world", ack=5001), 1)
        assert payload(rig.to_client()) == b" world"
        assert rig.count("drain", "carry", "whole") == 2
        assert _numbers(plane) == before
    rig.close()


def _of_other_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = loader.flags
    monkeypatch.setattr(loader, "flags", lambda sizes: (*flags(sizes), "-DCOLO_TESTED"))


def test_other_programs_are_made_and_take_the_places(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, (old,) = _numbers(rig.plane), _sets(rig)
    _of_other_flags(monkeypatch)
    plane = _again(rig)
    after = _numbers(plane)
    assert not set(after.values()) & set(before.values())
    assert set(_attached(rig).values()) <= set(before.values()), "those attached are still there"
    assert old in _sets(rig), "and so are those that they call"
    asyncio.run(plane.take_role(VmRole.PRIMARY))
    assert {name: after[name] for name in _attached(rig)} == _attached(rig)
    (new,) = _sets(rig)
    assert new != old
    assert _numbers(_again(rig)) == after


def _half_published(pins: Path, code: Path) -> None:
    code.rename(pins / "new_code")


def _a_program_lacks(_pins: Path, code: Path) -> None:
    (code / "colo_age").unlink()


def _a_program_is_another(_pins: Path, code: Path) -> None:
    (code / "colo_age").unlink()
    (code / "colo_park").rename(code / "colo_age")


def _others_may_write(_pins: Path, code: Path) -> None:
    code.chmod(0o777)


def _of_another_user(_pins: Path, code: Path) -> None:
    os.chown(code, 1000, 1000)


def _the_calls_are_empty(_pins: Path, code: Path) -> None:
    fd = syscalls.obj_get(str(code / "colo_calls"))
    syscalls.RawMap(fd).delete(b"\0" * 4)
    os.close(fd)


def _of_other_maps(pins: Path, _code: Path) -> None:
    (pins / "colo_turn").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        _half_published,
        _a_program_lacks,
        _a_program_is_another,
        _others_may_write,
        _of_another_user,
        _the_calls_are_empty,
        _of_other_maps,
    ],
)
def test_what_is_not_whole_is_not_adopted(rig: Rig, damage: Callable[[Path, Path], None]) -> None:
    before, (old,) = _numbers(rig.plane), _sets(rig)
    damage(rig._pins, old)
    plane = _again(rig)
    assert not set(_numbers(plane).values()) & set(before.values())
    asyncio.run(plane.take_role(VmRole.PRIMARY))
    assert [path.name for path in _sets(rig)] == [old.name]
    numbers = _numbers(plane)
    assert _numbers(_again(rig)) == numbers


def test_without_a_vm_nothing_of_other_sets_is_left(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _of_other_flags(monkeypatch)
    monkeypatch.setattr("colo_ebpf.datapath.net.tuntap.in_use", lambda _: False)
    (old,) = _sets(rig)
    _again(rig)
    (new,) = _sets(rig)
    assert new != old
