# SPDX-License-Identifier: GPL-2.0-only
"""The files of a run directory: bounded, and none of them is needed for what protects the VM."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.control.checkpoint.secondary import Note
from colo_ebpf.control.qemu import colo_trace
from colo_ebpf.control.qemu.bounded_log import BoundedLog
from colo_ebpf.control.qemu.log_tail import LogTail
from colo_ebpf.control.state import atomic
from colo_ebpf.control.state.files import NoteFile
from colo_ebpf.control.state.images import DataGeneration

_MOST, _KEPT = 1 << 20, 256 << 10


def _note(epoch: int) -> Note:
    return Note(epoch=epoch, before=epoch, loads=epoch, highest=epoch)


def _append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def test_what_a_guest_says_on_its_console_is_bounded(tmp_path: Path) -> None:
    """As found: 1 MB in six seconds into /run, until nothing else could be written there."""
    path = tmp_path / "serial.log"
    log, fd = BoundedLog(path), _append(path)
    for n in range(400):
        os.write(fd, (b"%07d\n" % n) * (16 << 10 >> 3))
        log.cut()
        assert sum(one.stat().st_size for one in tmp_path.iterdir()) <= _MOST + 3 * _KEPT
    before = path.stat().st_size
    os.write(fd, b"the last line\n")
    assert path.stat().st_size == before + 14, "QEMU writes on at the end, not where it was"
    text = (tmp_path / "serial.log.old").read_bytes() + path.read_bytes()
    assert text.endswith(b"0000399\nthe last line\n")
    assert text.count(b"0000390\n") == 2 << 10, "what was cut off stands in .old"


def test_a_small_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "qemu.log"
    path.write_bytes(b"x" * _MOST)
    BoundedLog(path).cut()
    assert path.stat().st_size == _MOST
    assert [one.name for one in tmp_path.iterdir()] == ["qemu.log"]
    BoundedLog(tmp_path / "none").cut()


def test_a_new_vm_begins_a_new_log_and_the_last_ones_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "serial.log"
    path.write_bytes(b"y" * 10 + b"a" * _KEPT)
    BoundedLog(path).begin()
    assert not path.exists()
    assert (tmp_path / "serial.log.old").read_bytes() == b"a" * _KEPT


# --- no room, read-only, broken -----------------------------------------------------------

Refuse = Callable[[int], None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refuse]:
    """Each call that changes a file fails with this number from now on."""

    def begin(number: int) -> None:
        real_open, real_os_open = Path.open, os.open

        def fail(*_: Any, **__: Any) -> Any:
            raise OSError(number, os.strerror(number))

        def opens(path: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
            return real_open(path, mode, *args, **more) if mode in ("r", "rb") else fail()

        def os_opens(path: Any, flags: int, *args: Any, **more: Any) -> int:
            changes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            return fail() if changes else real_os_open(path, flags, *args, **more)

        monkeypatch.setattr(Path, "open", opens)
        monkeypatch.setattr(os, "open", os_opens)
        for name in ("unlink", "replace", "write_bytes", "write_text", "rename"):
            monkeypatch.setattr(Path, name, fail)

    yield begin


_NUMBERS = [errno.ENOSPC, errno.EROFS, errno.EIO]


@pytest.mark.parametrize("number", _NUMBERS)
def test_a_log_that_cannot_be_cut_is_said_once(
    number: int, tmp_path: Path, refuse: Refuse, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "serial.log"
    path.write_bytes(b"x" * 2 * _MOST)
    log = BoundedLog(path)
    refuse(number)
    for _ in range(3):
        log.cut()
    (line,) = caplog.messages
    assert "serial.log" in line
    assert os.strerror(number) in line


@pytest.mark.parametrize("number", _NUMBERS)
def test_a_note_that_cannot_be_kept_is_said_once(
    number: int, tmp_path: Path, refuse: Refuse, caplog: pytest.LogCaptureFixture
) -> None:
    notes = NoteFile(tmp_path / "turns.json")
    notes.keep("a/1", _note(1))
    refuse(number)
    for epoch in (2, 3, 4):
        notes.keep("a/1", _note(epoch))
    (line,) = caplog.messages
    assert os.strerror(number) in line


def test_a_note_is_written_in_place_and_needs_no_room(tmp_path: Path) -> None:
    path = tmp_path / "turns.json"
    notes = NoteFile(path)
    notes.keep("a/1", _note(1))
    node, size = path.stat().st_ino, path.stat().st_size
    for epoch in (9, 10**9):
        notes.keep("a/0123456789abcdef", _note(epoch))
        assert (path.stat().st_ino, path.stat().st_size) == (node, size)
        assert notes.load("a/0123456789abcdef") == _note(epoch)
    assert list(tmp_path.iterdir()) == [path]
    assert NoteFile(path).load("another") is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_data_generation_that_cannot_be_ended_counts_as_ended(
    number: int, tmp_path: Path, refuse: Refuse, caplog: pytest.LogCaptureFixture
) -> None:
    """As found: with a read-only run directory a won claim was tried again for ever."""
    image = tmp_path / "image"
    image.write_bytes(b"")
    data_generation = DataGeneration(tmp_path / "replicas.json", (image,))
    data_generation.begin("b/1")
    assert data_generation.replicas() == ("b/1",)
    refuse(number)
    DataGeneration(tmp_path / "replicas.json", (image,)).end()
    assert data_generation.replicas() == (), "of no replica: all is copied"
    assert os.strerror(number) in caplog.text


def test_a_data_generation_that_is_begun_again_is_of_the_new_replica_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"")
    data_generation = DataGeneration(tmp_path / "replicas.json", (image,))
    data_generation.begin("b/1")
    with monkeypatch.context() as patched:

        def fail(path: Path) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        patched.setattr(Path, "unlink", fail)
        data_generation.end()
    data_generation.begin("b/2")
    assert data_generation.replicas() == ("b/2",)


def test_a_sum_is_put_beside_its_file_without_a_second_one(tmp_path: Path) -> None:
    path = tmp_path / "colo.trace"
    path.write_bytes(b"colo_send_message Send 'vmstate-loaded' message\n" * 8_000)
    summed = LogTail(path, colo_trace.TraceState(), colo_trace.follow)
    summed.cut()
    assert path.stat().st_blocks * 512 < 128 << 10
    again = LogTail(path, colo_trace.TraceState(), colo_trace.follow)
    assert again.read() == summed.read()
    assert {one.name for one in tmp_path.iterdir()} == {"colo.trace", "colo.sum"}
    assert atomic.PLACE_BYTES >= 512
