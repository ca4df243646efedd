# SPDX-License-Identifier: GPL-2.0-only
"""Overlays of two VMs have the same names: a directory is one VM's."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo_ebpf.errors import StorageError
from colo_ebpf.storage.overlay import claim, release


def test_a_second_vm_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """As found: both used `active0.qcow2`, the first one's was `(deleted)`."""
    directory = tmp_path / "shm" / "colo-ebpf"
    claim(directory, "web1")
    claim(directory, "web1")
    with pytest.raises(StorageError, match=rf"{directory} is that of VM web1: give VM web2 anot"):
        claim(directory, "web2")
    assert [file.name for file in directory.iterdir()] == ["colo-ebpf.owner"]
    (directory / "colo-ebpf.owner").unlink()
    claim(directory, "web2")


def test_of_two_that_begin_together_one_is_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: False)
    claim(tmp_path, "web1")
    with pytest.raises(StorageError, match="that of VM web1"):
        claim(tmp_path, "web2")
    assert [file.name for file in tmp_path.iterdir()] == ["colo-ebpf.owner"]


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"overlay-dir .*: File exists"):
        claim(tmp_path / "file", "web")


def test_a_directory_that_is_given_back_is_free_for_others(tmp_path: Path) -> None:
    directory = tmp_path / "web"
    claim(directory, "web1")
    assert not release(directory, "web2")
    assert release(directory, "web1")
    assert not directory.exists()
    assert not release(directory, "web1")
    claim(directory, "web2")


def test_overlays_may_hold_what_a_disk_lacks(tmp_path: Path) -> None:
    claim(tmp_path, "web")
    (tmp_path / "active0.qcow2").touch()
    assert not release(tmp_path, "web")
    assert {path.name for path in tmp_path.iterdir()} == {"active0.qcow2", "colo-ebpf.owner"}
    assert release(tmp_path, "web", [tmp_path / "active0.qcow2", tmp_path / "hidden0.qcow2"])
    assert not tmp_path.exists()
