# SPDX-License-Identifier: GPL-2.0-only
"""What the checks of tests/lab/test_writer.py find: each of them can fail."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.capabilities import GUEST, require
from tests.lab import records
from tests.lab.test_writer import Moment, plan

_WHOLE = 64 * 512


def _files(directory: Path) -> list[Path]:
    """130 records: two full files and one that is not."""
    data = b"".join(map(records.record, range(1, 131)))
    parts = [data[at : at + _WHOLE] for at in range(0, len(data), _WHOLE)]
    paths = [directory / f"{place:08}" for place in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    return paths


def test_records_are_counted(tmp_path: Path) -> None:
    _files(tmp_path)
    assert records.read(tmp_path) == (130, [])


def test_a_record_of_something_else_is_found(tmp_path: Path) -> None:
    path = _files(tmp_path)[1]
    data = bytearray(path.read_bytes())
    data[512 + 100] ^= 1
    path.write_bytes(data)
    assert records.read(tmp_path) == (130, ["record 66 is not what was written"])


def test_a_file_that_is_missing_or_short_is_found(tmp_path: Path) -> None:
    paths = _files(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    assert "00000002, 1023 bytes, is the file number 2" in records.read(tmp_path)[1]
    paths[0].write_bytes(paths[0].read_bytes()[:-512])
    assert "00000000 is not full, and there are more" in records.read(tmp_path)[1]
    paths[1].unlink()
    assert "00000002, 1023 bytes, is the file number 1" in records.read(tmp_path)[1]


def test_a_file_system_that_is_not_clean_is_found(tmp_path: Path) -> None:
    require("e2fsprogs")
    image = tmp_path / "ext4.raw"
    records.make(image, 16 << 20)
    assert records.examine(image, tmp_path) == (0, ["no journal was replayed: not in use?"])
    spoil = ["debugfs", "-w", "-R", "set_inode_field / links_count 9", str(image)]
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    subprocess.run(spoil, check=True, capture_output=True, timeout=60, env={"PATH": path})
    _, wrong = records.examine(image, tmp_path)
    assert any("ref count is 9" in line for line in wrong), wrong


@pytest.mark.parametrize("seed", range(5))
def test_fifty_kills_have_all_kinds_and_only_what_can_be_survived(seed: int) -> None:
    kills = plan(seed, 50)
    assert plan(seed, 50) == kills
    kinds = {(one.role, one.what, one.moment) for one in kills}
    sides = {(role, what) for role in ("primary", "secondary") for what in ("host", "vm")}
    assert {kind[:2] for kind in kinds if kind[2] is Moment.PROTECTED} == sides
    assert len({kind[:2] for kind in kinds if kind[2] is Moment.CHECKPOINT}) >= 3
    replicas = {kind[:2] for kind in kinds if kind[2] is Moment.REPLICA}
    assert replicas == {("secondary", "host"), ("secondary", "vm")}
    assert kills[0].moment is not Moment.REPLICA
    assert kills[-1].moment is not Moment.REPLICA


def test_the_guest_has_the_writer() -> None:
    require("guest")
    assert (GUEST / "writer").exists(), "it was built before there was one: run `make guest`"
