# SPDX-License-Identifier: GPL-2.0-only
"""The record's legal moves, and the file arbiter that keeps it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colo_ebpf.control.arbiter.file import FileArbiter
from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.record import Disk, Kind, Record
from colo_ebpf.control.state.files import GenerationFloor
from colo_ebpf.errors import ArbiterError
from colo_ebpf.lab import mounts
from tests.capabilities import require

A, B = "a/0000000000000001", "b/0000000000000002"
COLD = record.cold("a")
CLAIMED = record.start(COLD, A)
ACTIVE = record.activate(CLAIMED)
PAIRED = record.pair(ACTIVE, B, 7)


def test_the_way_of_a_takeover() -> None:
    won = record.claim(PAIRED, B)
    assert (won.kind, won.owner, won.other, won.vni) == (Kind.CLAIMED, B, A, 7)
    active = record.activate(won)
    assert active.disk is Disk.OVERLAID
    assert not active.names(A)
    whole = record.commit(active)
    assert (whole.disk, whole.image) == (Disk.WHOLE, "b")
    assert record.pair(whole, "a/0000000000000003", 8).generation == PAIRED.generation + 4


def test_the_way_of_a_switchover_there_and_back() -> None:
    handed_over = record.hand_over(PAIRED)
    assert (handed_over.owner, handed_over.other, handed_over.given) == (B, A, True)
    assert handed_over.names(A), "the old primary's VM is kept until the other one is active"
    assert not record.activate(handed_over).names(A)
    back = record.concede(handed_over, B)
    assert (back.kind, back.owner, back.other, back.image) == (Kind.CLAIMED, A, "", "a")
    assert record.activate(back).disk is Disk.WHOLE
    taken_back = record.claim(handed_over, A)
    assert (taken_back.owner, taken_back.other, taken_back.given) == (A, B, False)


def test_what_was_sent_before_cannot_be_written_after_a_pair_was_written_anew() -> None:
    anew = record.reassert(PAIRED)
    assert (anew.meaning(), anew.generation) == (PAIRED.meaning(), PAIRED.generation + 1)
    assert record.claim(PAIRED, B).generation == anew.generation


@pytest.mark.parametrize(
    "move",
    [
        lambda: record.start(COLD, B),
        lambda: record.activate(ACTIVE),
        lambda: record.pair(CLAIMED, B, 7),
        lambda: record.pair(ACTIVE, "a/0000000000000009", 7),
        lambda: record.pair(ACTIVE, B, 0),
        lambda: record.pair(record.activate(record.claim(PAIRED, B)), A, 9),
        lambda: record.claim(ACTIVE, B),
        lambda: record.claim(record.activate(record.claim(PAIRED, B)), A),
        lambda: record.claim(record.claim(PAIRED, B), B),
        lambda: record.claim(PAIRED, "c/0000000000000003"),
        lambda: record.concede(ACTIVE, A),
        lambda: record.commit(ACTIVE),
        lambda: record.reassert(CLAIMED),
        lambda: record.hand_over(ACTIVE),
        lambda: record.power_off(COLD, 1),
        lambda: record.power_off(record.claim(PAIRED, B), 1),
        lambda: record.power_off(record.activate(record.claim(PAIRED, B)), 1),
        lambda: record.start(record.power_off(PAIRED, 1), B),
        lambda: record.activate(record.power_off(PAIRED, 1)),
        lambda: record.hand_to_image(record.power_off(PAIRED, 1)),
    ],
)
def test_an_illegal_move_is_never_made(move: Callable[[], Record]) -> None:
    with pytest.raises(ArbiterError):
        move()


@pytest.mark.parametrize("seconds", [-1, record.LATEST_S, 10**18])
def test_a_time_that_cannot_be_told_is_an_error(seconds: int) -> None:
    """As found: status ended in OSError."""
    text = record.encode(record.power_off(PAIRED, 1_700_000_000))
    with pytest.raises(ArbiterError, match="malformed"):
        record.decode(text.replace(b"1700000000", b"%d" % seconds), "x")
    assert "off, by its guest at" in record.power_off(PAIRED, record.LATEST_S - 1).describe()


@pytest.mark.parametrize("text", [b"", b"{}", b"not json", b'{"generation":0}', b"[1]"])
def test_a_malformed_record_is_an_error(text: bytes) -> None:
    with pytest.raises(ArbiterError, match="malformed"):
        record.decode(text, "somewhere")


def test_it_survives_its_encoding() -> None:
    for one in (
        COLD,
        CLAIMED,
        ACTIVE,
        PAIRED,
        record.hand_over(PAIRED),
        record.power_off(PAIRED, 1_700_000_000),
    ):
        assert record.decode(record.encode(one), "x") == one


def test_what_is_not_used_is_not_written_and_an_older_version_is_not_disturbed() -> None:
    assert b"off_at_s" not in record.encode(PAIRED)
    with_defaults = b'{"generation":1,"kind":"cold","owner":"a","other":"","vni":0,"image":"a"}'
    assert record.decode(with_defaults, "x") == COLD


def test_a_vm_that_is_off_names_nobody() -> None:
    off = record.power_off(PAIRED, 1_700_000_000)
    assert not off.names(A)
    assert not off.names(B)
    assert off.describe() == "off, by its guest at 2023-11-14 22:13:20 UTC, the image on a"


def test_an_older_generation_is_refused_over_restarts(tmp_path: Path) -> None:
    GenerationFloor(tmp_path).note(PAIRED)
    floor = GenerationFloor(tmp_path)
    floor.check(PAIRED)
    with pytest.raises(ArbiterError, match="restored or replaced"):
        floor.check(ACTIVE)


def _full(directory: Path) -> None:
    """No room is left in a file system of its own."""
    with (directory / "log").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    require("root")
    directory = tmp_path / "small"
    directory.mkdir()
    mounts.mount_memory(directory, 64 << 10)
    try:
        yield directory
    finally:
        mounts.unmount(directory)


def test_a_generation_is_kept_where_there_is_no_room_any_more(small: Path) -> None:
    floor = GenerationFloor(small)
    _full(small)
    floor.note(PAIRED)
    assert GenerationFloor(small).value == PAIRED.generation
    assert sorted(one.name for one in small.iterdir()) == ["generation", "log"]


def test_one_that_cannot_be_kept_counts_all_the_same(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody serves while a claim that was won is tried again for ever."""
    _full(small)
    floor = GenerationFloor(small)
    floor.note(PAIRED)
    with pytest.raises(ArbiterError, match="restored or replaced"):
        floor.check(ACTIVE)
    assert "No space left on device" in caplog.text
    assert [one.name for one in small.iterdir()] == ["log"], "and nothing is left of the try"


def test_a_generation_of_an_older_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "generation").write_text("7\n")
    assert GenerationFloor(tmp_path).value == 7
    assert GenerationFloor(tmp_path).value == 7


def _arbiter(directory: Path) -> FileArbiter:
    return FileArbiter(directory, 5000)


async def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArbiterError, match="cannot read"):
        await _arbiter(tmp_path / "none").read()
    assert (await _arbiter(tmp_path / "new").init("a")).owner == "a"


async def test_a_crash_before_the_link_leaves_the_record_as_it_was(tmp_path: Path) -> None:
    first = await _arbiter(tmp_path).init("a")
    (tmp_path / ".deadbeef.tmp").write_bytes(b"half a rec")
    assert await _arbiter(tmp_path).read() == first
    assert (await _arbiter(tmp_path).swap(first, record.start(first, A))).owner == A
