# SPDX-License-Identifier: GPL-2.0-only
"""Every file that a daemon writes, on a file system without room, that is read-only, or that
answers EIO: what must go on goes on, what must not be done is refused in words, and nothing piles
up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.control import startup
from colo_ebpf.control.arbiter.file import FileArbiter
from colo_ebpf.control.checkpoint.secondary import Note
from colo_ebpf.control.decision import record
from colo_ebpf.control.peer.pause import Pause
from colo_ebpf.control.qemu import colo_trace
from colo_ebpf.control.qemu.bounded_log import BoundedLog
from colo_ebpf.control.qemu.event_log import EventLog
from colo_ebpf.control.qemu.log_tail import LogTail
from colo_ebpf.control.state import atomic
from colo_ebpf.control.state.files import GenerationFloor, NoteFile, PauseFile
from colo_ebpf.control.state.images import DataGeneration
from colo_ebpf.control.state.inconsistent import InconsistentImages
from colo_ebpf.datapath.bpf.image_cache import Kept
from colo_ebpf.errors import ArbiterError, ColoError, ControlError, StorageError, VmError
from colo_ebpf.lab import mounts
from colo_ebpf.storage import overlay
from tests.capabilities import require
from tests.unit.test_image_cache import IMAGE, SOURCE

A, B = "a/00000000000000aa", "b/00000000000000bb"
COLD = record.cold("a")
ALONE = record.activate(record.start(COLD, A))
PAIRED = record.pair(ALONE, B, 7)
_BYTES = 4 << 20
_TRIES = 3

Do = Callable[[], object]
Begin = Callable[[Path], Do]


@dataclass(frozen=True, slots=True)
class File:
    """What a daemon does with one of its files: `begin` while all is well; what it gives later."""

    name: str
    begin: Begin
    refuses: type[ColoError] | None = None  # None: it goes on
    in_place: bool = False  # it needs no room


def _generation(directory: Path) -> Do:
    floor = GenerationFloor(directory)
    return lambda: floor.note(PAIRED)


def _pause(directory: Path) -> Do:
    file = PauseFile(directory)
    file.load()
    return lambda: file.keep(Pause(1, True))


def _begun(directory: Path) -> Do:
    return lambda: InconsistentImages(directory).begin(B)


def _ended(directory: Path) -> Do:
    InconsistentImages(directory).begin(B)
    return lambda: InconsistentImages(directory).learn(PAIRED)


def _turns(directory: Path) -> Do:
    notes = NoteFile(directory / "turns.json")
    notes.keep(A, Note(epoch=1, before=1, loads=1, highest=1))
    return lambda: notes.keep(A, Note(epoch=2, before=2, loads=2, highest=2))


def _data_generation(directory: Path) -> DataGeneration:
    image = directory / "image"
    image.write_bytes(b"")
    return DataGeneration(directory / "replicas.json", (image,))


def _descends(directory: Path) -> Do:
    data_generation = _data_generation(directory)
    return lambda: data_generation.begin(B)


def _descends_no_more(directory: Path) -> Do:
    data_generation = _data_generation(directory)
    data_generation.begin(B)
    return data_generation.end


def _sum(directory: Path) -> Do:
    path = directory / "colo.trace"
    path.write_bytes(b"colo_send_message Send 'vmstate-loaded' message\n")
    summed = LogTail(path, colo_trace.TraceState(), colo_trace.follow)
    summed.cut()
    with path.open("ab") as file:
        file.write(b"colo_send_message Send 'vmstate-loaded' message\n" * 8_000)
    return summed.cut


def _first_sum(directory: Path) -> Do:
    path = directory / "colo.trace"
    path.write_bytes(b"colo_send_message Send 'vmstate-loaded' message\n")
    return LogTail(path, colo_trace.TraceState(), colo_trace.follow).cut


def _console(directory: Path) -> Do:
    path = directory / "serial.log"
    path.write_bytes(b"x" * (2 << 20))
    return BoundedLog(path).cut


def _events(directory: Path) -> Do:
    return lambda: EventLog(directory / "events-1").make()


def _arbiter(directory: Path) -> Do:
    here = FileArbiter(directory, 10_000, "b")
    first = asyncio.run(here.init("a"))
    asyncio.run(here.read())
    return lambda: asyncio.run(here.swap(first, record.start(first, A)))


def _compiled(directory: Path) -> Do:
    directory.chmod(0o700)
    (directory / "programs").mkdir(mode=0o700)
    kept = Kept(directory / "programs")

    def keep() -> None:
        with kept.alone():
            kept.keep(SOURCE, IMAGE)
        left = [one.name for one in (directory / "programs").iterdir() if one.name != "lock"]
        assert left == []

    return keep


def _owner(directory: Path) -> Do:
    return lambda: overlay.claim(directory, "web")


def _lock(directory: Path) -> Do:
    (directory / "daemon.lock").touch()
    return lambda: startup.lock(directory).close()


_ALL = [
    File("generation", _generation, in_place=True),
    File("pause", _pause, in_place=True),
    File("unfinished, begun", _begun, ControlError),
    File("unfinished, ended", _ended, in_place=True),
    File("turns.json", _turns, in_place=True),
    File("replicas.json, begun", _descends, ControlError),
    File("replicas.json, ended", _descends_no_more, in_place=True),
    File("colo-*.sum", _sum, in_place=True),
    File("colo-*.sum, the first time", _first_sum),
    File("serial.log", _console),
    File("events-*", _events, VmError),
    File("the record", _arbiter, ArbiterError, in_place=True),
    File("what was compiled", _compiled),
    File("colo-ebpf.owner", _owner, StorageError),
]


@pytest.fixture(autouse=True)
def _nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_unwritten", {})


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    require("root")
    directory = tmp_path / "small"
    directory.mkdir()
    mounts.mount_memory(directory, _BYTES)
    try:
        yield directory
    finally:
        mounts.unmount(directory)


Break = Callable[[Path, pytest.MonkeyPatch], None]


def _full(directory: Path, _: pytest.MonkeyPatch) -> None:
    with (directory / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def _read_only(directory: Path, _: pytest.MonkeyPatch) -> None:
    words = ["mount", "-o", "remount,ro", str(directory)]
    subprocess.run(words, check=True, timeout=60)


def _eio(directory: Path, patched: pytest.MonkeyPatch) -> None:
    """Of each call that changes something there."""
    broken = OSError(errno.EIO, os.strerror(errno.EIO))
    real_open, real_os_open = Path.open, os.open

    def opens(path: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        if mode not in ("r", "rb") and path.is_relative_to(directory):
            raise broken
        return real_open(path, mode, *args, **more)

    def os_opens(path: Any, flags: int, *args: Any, **more: Any) -> int:
        there = not isinstance(path, int) and Path(path).is_relative_to(directory)
        if there and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise broken
        return real_os_open(path, flags, *args, **more)

    def fails(*_: Any, **__: Any) -> Any:
        raise broken

    patched.setattr(Path, "open", opens)
    patched.setattr(os, "open", os_opens)
    for name in ("unlink", "replace", "rename", "write_bytes", "write_text", "mkdir"):
        patched.setattr(Path, name, fails)
    for name in ("link", "truncate"):
        patched.setattr(os, name, fails)


_WAYS = {"full": _full, "read-only": _read_only, "EIO": _eio}


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("file", _ALL, ids=lambda file: file.name)
def test_it_goes_on_or_is_refused_in_words(
    file: File, way: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = file.begin(small)
    before = {one.name for one in small.iterdir()}
    refuses = file.refuses if not (way == "full" and file.in_place) else None
    with monkeypatch.context() as patched:
        _WAYS[way](small, patched)
        for _ in range(_TRIES):
            if refuses is None:
                again()
                continue
            with pytest.raises(refuses) as caught:
                again()
            assert str(small) in str(caught.value), "it names the file"
            assert "\n" not in str(caught.value)
    allowed = {"filler", "serial.log.old", "gen-2", "events-1.in"}
    assert {one.name for one in small.iterdir()} - before <= allowed, "nothing piles up"


def test_a_lock_needs_no_room(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As found: a daemon that was started again on a full /run ended with a traceback."""
    again = _lock(small)
    _full(small, monkeypatch)
    again()


@pytest.mark.parametrize(("begin", "name"), [(_generation, "generation"), (_pause, "pause")])
def test_what_is_owed_is_said_until_it_is_written(
    begin: Begin,
    name: str,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keep = begin(small)
    file = keep.__closure__[0].cell_contents.file  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        _eio(small, patched)
        keep()
        assert atomic.unwritten() == (f"{small / name}: Input/output error",)
        file.rewrite()
        assert file.unwritten
    said = [line for line in caplog.messages if name in line]
    assert len(said) == 1, "and in the log once"
    file.rewrite()
    assert not file.unwritten
    assert atomic.unwritten() == ()


async def test_a_file_that_is_written_by_two_threads_ends_with_the_newest(tmp_path: Path) -> None:
    file = atomic.RetriedFile(tmp_path / "generation", "it is forgotten")
    for number in range(200):
        beside = asyncio.create_task(asyncio.to_thread(file.rewrite))
        file.keep(b"%8d" % number)
        await beside
        file.rewrite()
        assert (tmp_path / "generation").read_bytes() == b"%8d" % number


async def test_drafts_of_writers_that_died_go_with_their_generation(tmp_path: Path) -> None:
    arbiter = FileArbiter(tmp_path, 10_000)
    newest = await arbiter.init("a")
    newest = await arbiter.swap(newest, record.start(newest, A))
    newest = await arbiter.swap(newest, record.activate(newest))
    (tmp_path / ".1-00ff.tmp").write_bytes(b"half a rec")
    (tmp_path / ".90-00ff.tmp").write_bytes(b"of one that may be at it")
    for _ in range(20):
        newest = await arbiter.swap(newest, record.reassert(newest))
    assert not (tmp_path / ".1-00ff.tmp").exists()
    assert (tmp_path / ".90-00ff.tmp").exists()


async def test_each_host_keeps_the_room_of_its_next_record(tmp_path: Path) -> None:
    one, other = (FileArbiter(tmp_path, 10_000, host) for host in "ab")
    first = await one.init("a")
    await other.read()
    assert (tmp_path / ".spare-b").stat().st_blocks > 0
    second = await one.swap(first, record.start(first, A))
    assert (await other.swap(second, record.activate(second))).kind is record.Kind.ACTIVE
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        *(".spare-a", ".spare-b", "gen-1", "gen-2", "gen-3")
    ]


@pytest.mark.parametrize("way", ["full", "read-only"])
async def test_an_arbiter_that_could_take_no_record_is_known_beforehand(
    way: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arbiter = FileArbiter(small, 10_000, "a")
    await arbiter.init("a")
    await arbiter.check()
    (small / ".spare-a").unlink()
    _WAYS[way](small, monkeypatch)
    with pytest.raises(ArbiterError, match="no takeover can be written down"):
        await arbiter.check()
    with pytest.raises(ArbiterError, match="no takeover can be written down"):
        await arbiter.examine()
