# SPDX-License-Identifier: GPL-2.0-only
"""Of which replicas images are the remains, and which bitmap fits them."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo_ebpf.control.qemu.bitmaps import bitmap_of, choose
from colo_ebpf.control.state import images
from colo_ebpf.control.state.images import DataGeneration
from colo_ebpf.errors import StorageError

A, B, C = (f"b/{n:016x}" for n in range(3))


def _data_generation(directory: Path) -> DataGeneration:
    image = directory / "disk.raw"
    image.touch()
    return DataGeneration(directory / "replicas.json", (image,))


def test_replicas_are_remembered_in_order_and_not_for_ever(tmp_path: Path) -> None:
    kept = _data_generation(tmp_path)
    assert kept.replicas() == ()
    for name in (A, B, C):
        kept.begin(name)
    assert _data_generation(tmp_path).replicas() == (A, B, C)
    for number in range(10):
        kept.begin(f"b/{number:016x}")
    assert kept.replicas() == tuple(f"b/{number:016x}" for number in range(6, 10))


def test_its_end_is_its_end(tmp_path: Path) -> None:
    kept = _data_generation(tmp_path)
    kept.end()
    kept.begin(A)
    kept.end()
    assert kept.replicas() == ()


def test_another_file_of_that_name_is_no_replica(tmp_path: Path) -> None:
    kept = _data_generation(tmp_path)
    kept.begin(A)
    other = tmp_path / "other"
    other.touch()
    other.replace(tmp_path / "disk.raw")
    assert kept.replicas() == ()
    kept.begin(B)
    assert kept.replicas() == (B,)


def test_a_reboot_may_lose_what_was_not_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = _data_generation(tmp_path)
    kept.begin(A)
    monkeypatch.setattr(images, "_boot_id", lambda: "another")
    assert kept.replicas() == ()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"boot_id": 1}', b"\xff"])
def test_what_cannot_be_read_is_nothing(tmp_path: Path, content: bytes) -> None:
    kept = _data_generation(tmp_path)
    kept.begin(A)
    (tmp_path / "replicas.json").write_bytes(content)
    assert kept.replicas() == ()


def test_errors_name_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = _data_generation(tmp_path)
    (tmp_path / "replicas.json").mkdir()
    kept.end()
    assert "replicas.json: Is a directory" in caplog.text
    (tmp_path / "disk.raw").unlink()
    with pytest.raises(StorageError, match=r"disk\.raw: does not exist"):
        kept.begin(A)


def test_the_newest_bitmap_that_every_disk_has() -> None:
    a, b = bitmap_of(A), bitmap_of(B)
    assert choose([{a: 1, b: 0}, {a: 5, b: 3}], (A, B, C)) == b
    assert choose([{a: 1, b: 0}, {a: 5}], (A, B, C)) == a
    assert choose([{a: 1}, {b: 5}], (A, B)) == ""
    assert choose([{a: 1}], (B, C)) == ""
    assert choose([{a: 1}], ()) == ""
    assert choose([], (A,)) == ""
