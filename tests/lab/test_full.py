# SPDX-License-Identifier: GPL-2.0-only
"""No room is left, or nothing can be written, where a host keeps its files: the VM's protection and
a takeover go on. More of it: `tests/matrix`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colo_ebpf.lab import faults, mounts
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import Place
from tests.lab import cli, protected

_LIMIT_S = 30.0
_ROOM_BYTES = 4 << 20


def _of_its_own(_: Lab, place: Place) -> None:
    mounts.mount_memory(_state(place), _ROOM_BYTES)
    mounts.mount_memory(place.run_dir, _ROOM_BYTES)


def _state(place: Place) -> Path:
    return place.directory / "state"


def _run(place: Place) -> Path:
    return place.run_dir


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A protected pair, whose directories are file systems of their own."""
    with protected("colotfull", prepare=_of_its_own) as made:
        yield made


def _fill(directory: Path) -> None:
    with (directory / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No"):
        while True:
            file.write(bytes(4096))


def _freeze(directory: Path) -> None:
    words = ["mount", "-o", "remount,ro", str(directory)]
    subprocess.run(words, check=True, timeout=60)


@pytest.mark.parametrize(
    ("where", "broken"), [(_state, _freeze), (_run, _fill)], ids=["state read-only", "run full"]
)
def test_it_stops_no_takeover(
    lab: Lab, where: Callable[[Place], Path], broken: Callable[[Path], None]
) -> None:
    """As found: the claim was won, then tried again for ever, and nobody served."""
    directory = where(lab.places["b"])
    before = {one.name for one in directory.iterdir()}
    for place in lab.places.values():
        broken(where(place))
    done = cli(lab, "a", "checkpoint")
    assert done.returncode == 0, "protection goes on"
    faults.kill(lab, "a", "host")

    def serves() -> bool:
        status = lab.ask("b") or {}
        return status.get("state") == "solo" and status.get("step") is None

    lab.wait(serves, "the secondary does not serve", _LIMIT_S)
    if where is _state:
        owed = f"{directory / 'generation'}: Read-only file system"
        assert owed in (lab.ask("b") or {})["unwritten"]
        assert f"CANNOT WRITE  {owed}" in cli(lab, "b", "status").stdout
        subprocess.run(["mount", "-o", "remount,rw", str(directory)], check=True, timeout=60)
        lab.wait(
            lambda: owed not in (lab.ask("b") or {"unwritten": [owed]})["unwritten"],
            "it is not written",
            _LIMIT_S,
        )
    left = {one.name for one in directory.iterdir() if one.suffix != ".sum"}  # of a log that grew
    assert left - before - {"filler"} == set(), "no temporary files"


def test_a_guest_cannot_fill_the_run_directory(lab: Lab) -> None:
    """As found: 1 MB in six seconds by its console, then no note of an epoch could be kept."""
    run_dir = lab.places["a"].run_dir
    console = run_dir / "serial.log"
    (fd,) = [
        fd for fd in Path(f"/proc/{_qemu(lab)}/fd").iterdir() if os.readlink(fd) == str(console)
    ]
    flags = Path(f"/proc/{_qemu(lab)}/fdinfo/{fd.name}").read_text()
    (text,) = [line.split()[1] for line in flags.splitlines() if line.startswith("flags")]
    assert int(text, 8) & os.O_APPEND, "else it would write on where it was, behind a hole"
    with console.open("ab", buffering=0) as guest:
        guest.write(b"x" * (2 << 20))
    old = run_dir / "serial.log.old"
    most = _ROOM_BYTES // 4  # the guest itself goes on to say something there
    lab.wait(lambda: console.stat().st_size < most and old.exists(), "it is not cut", _LIMIT_S)
    assert sum(one.stat().st_blocks * 512 for one in run_dir.iterdir()) < _ROOM_BYTES // 2


def _qemu(lab: Lab) -> int:
    return int((lab.places["a"].run_dir / "qemu.pid").read_text().split()[0])
