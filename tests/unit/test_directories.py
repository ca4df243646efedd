# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon makes, QEMU's user comes through, under any umask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.control import startup
from colo_ebpf.directories import make_passable
from colo_ebpf.storage import image, overlay


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """The unit's."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_all_that_was_missing_is_passable(tmp_path: Path) -> None:
    make_passable(tmp_path / "run" / "vm")
    assert {_mode(tmp_path / "run"), _mode(tmp_path / "run" / "vm")} == {0o711}


def test_one_of_an_earlier_daemon_is_opened_and_what_is_above_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "run" / "vm").mkdir(parents=True)
    make_passable(tmp_path / "run" / "vm")
    assert (_mode(tmp_path / "run"), _mode(tmp_path / "run" / "vm")) == (0o700, 0o711)


def test_the_directories_of_a_vm_are_passable(tmp_path: Path) -> None:
    startup.lock(tmp_path / "run").close()
    overlay.claim(tmp_path / "overlays", "web")
    image.make_overlays((tmp_path / "more" / "active.qcow2",), 1 << 20)
    assert {_mode(tmp_path / name) for name in ("run", "overlays", "more")} == {0o711}
