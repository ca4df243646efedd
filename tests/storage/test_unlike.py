# SPDX-License-Identifier: GPL-2.0-only
"""Only what has another digest on the other side is carried there, while digests are being made."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from colo_ebpf.errors import NoDigestsError, StorageError
from colo_ebpf.storage import digests
from colo_ebpf.storage.carry import Pace
from colo_ebpf.storage.digests import DIGEST_BYTES, HEAD_BYTES, PIECE_BYTES, State
from colo_ebpf.storage.nbd import ExportAddress
from colo_ebpf.storage.unlike import UnlikeWay, carry_unlike
from tests.capabilities import require
from tests.storage.servers import serve

SIZE = 40 * PIECE_BYTES + 4096  # the last piece is a short one
TIMEOUT_MS = 5000
OLD, NEW = (random.Random(seed).randbytes(SIZE) for seed in (17, 18))
_STATE_AT = 8


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("qemu-nbd")


@dataclass
class Two:
    """An image here, and one there with a file for its digests; both of these are exported."""

    here: Path
    there: Path
    file: Path
    way: UnlikeWay

    def make(self, stopped: threading.Event | None = None) -> bool:
        return digests.make(self.file, self.there, stopped or threading.Event())

    def carry(self, made_timeout_ms: int = TIMEOUT_MS) -> int:
        pace = Pace(0, threading.Event())
        return carry_unlike([self.way], pace, TIMEOUT_MS, made_timeout_ms)

    def equal(self) -> bool:
        return self.here.read_bytes() == self.there.read_bytes()

    def made(self) -> int:
        raw = self.file.read_bytes()[HEAD_BYTES:]
        pieces = [raw[at : at + DIGEST_BYTES] for at in range(0, len(raw), DIGEST_BYTES)]
        return sum(1 for one in pieces if any(one))


@contextmanager
def _two(directory: Path, here: bytes | dict[int, bytes], there: bytes) -> Iterator[Two]:
    """`here`: the content, or what is different from `there`."""
    paths = [directory / name for name in ("here", "there", "digests")]
    paths[1].write_bytes(there)
    if isinstance(here, dict):
        content = bytearray(there)
        for at, data in here.items():
            content[at : at + len(data)] = data
        here = bytes(content)
    paths[0].write_bytes(here)
    digests.prepare(paths[2], paths[1])
    with (
        serve(paths[1]) as (export, _),
        serve(paths[2], name="digests-parent0") as (of_digests, _),
    ):
        yield Two(*paths, UnlikeWay(paths[0], of_digests, export))


def test_what_is_alike_is_not_sent(tmp_path: Path) -> None:
    changes = {100: b"one byte", 7 * PIECE_BYTES - 2: NEW[:4], SIZE - 1: b"\x00"}
    with _two(tmp_path, changes, OLD) as two:
        assert two.make()
        assert two.made() == 41
        assert two.carry() == 3 * PIECE_BYTES + 4096
        assert two.equal()


def test_digests_are_followed_while_they_are_made(tmp_path: Path) -> None:
    with _two(tmp_path, NEW, OLD) as two:
        maker = threading.Timer(0.3, two.make)
        maker.start()
        try:
            assert two.carry() == SIZE
        finally:
            maker.join()
        assert two.equal()


@pytest.mark.parametrize("seed", range(6))
def test_images_become_equal_whatever_is_in_them(seed: int, tmp_path: Path) -> None:
    """Holes, zeroes that were written, and pieces that are alike, in any order on both sides."""
    rng = random.Random(seed)
    size = rng.randrange(1, 80) * 4096 * rng.choice((1, 16))
    count = digests.pieces_of(size)
    content = [[rng.choice(("hole", "zero", "a", "b")) for _ in range(count)] for _ in range(2)]
    with _two(tmp_path, bytes(size), bytes(size)) as two:
        for path, pieces in zip((two.here, two.there), content, strict=True):
            os.truncate(path, 0)
            os.truncate(path, size)
            with path.open("r+b") as file:
                for number, what in enumerate(pieces):
                    length = min(PIECE_BYTES, size - number * PIECE_BYTES)
                    file.seek(number * PIECE_BYTES)
                    if what != "hole":
                        file.write({"zero": bytes(length), "a": OLD, "b": NEW}[what][:length])
        two.make()
        carried = two.carry()
        assert two.equal()
        alike = {("hole", "zero"), ("zero", "hole")}
        both = list(zip(*content, strict=True))
        unlike = [n for n, (a, b) in enumerate(both) if a != b and (a, b) not in alike]
        assert carried == sum(min(PIECE_BYTES, size - n * PIECE_BYTES) for n in unlike)


def test_digests_that_do_not_come_are_not_waited_for(tmp_path: Path) -> None:
    with _two(tmp_path, NEW, OLD) as two, pytest.raises(NoDigestsError, match="at 0 of 41: none"):
        two.carry(made_timeout_ms=200)


def test_digests_of_another_key_say_that_all_is_unlike(tmp_path: Path) -> None:
    with _two(tmp_path, {}, OLD) as two:
        two.make()
        with two.file.open("r+b") as file:
            file.seek(16)
            file.write(bytes(16))
        assert two.carry() == SIZE


def test_digests_are_taken_once(tmp_path: Path) -> None:
    with _two(tmp_path, NEW, OLD) as two:
        exports = [two.way.digests]
        assert digests.take(exports, wanted=True, timeout_ms=TIMEOUT_MS)
        assert two.file.read_bytes()[_STATE_AT] == State.FOLLOWED
        assert not digests.take(exports, wanted=True, timeout_ms=TIMEOUT_MS)


def test_a_peer_that_refuses_them_need_make_no_more(tmp_path: Path) -> None:
    with _two(tmp_path, NEW, OLD) as two:
        assert not digests.take([two.way.digests], wanted=False, timeout_ms=TIMEOUT_MS)
        assert not two.make()
        assert two.made() == 0
        assert not digests.take([two.way.digests], wanted=True, timeout_ms=TIMEOUT_MS)


def test_a_maker_that_is_stopped_stops(tmp_path: Path) -> None:
    stopped = threading.Event()
    stopped.set()
    with _two(tmp_path, NEW, OLD) as two:
        assert not two.make(stopped)
        assert two.made() == 0


def test_an_export_without_digests_is_told_apart(tmp_path: Path) -> None:
    with _two(tmp_path, NEW, OLD) as two:
        with pytest.raises(StorageError, match="holds no digests"):
            digests.take([two.way.there], wanted=True, timeout_ms=TIMEOUT_MS)
        nowhere = ExportAddress("nowhere", two.way.there.host, two.way.there.port)
        with pytest.raises(StorageError, match="nowhere"):
            digests.take([nowhere], wanted=True, timeout_ms=TIMEOUT_MS)


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    with _two(tmp_path, NEW + bytes(4096), OLD) as two:
        two.make()
        with pytest.raises(StorageError, match="no images of one disk"):
            two.carry()


def test_a_copy_that_is_given_up_ends_at_once(tmp_path: Path) -> None:
    stopped = threading.Event()
    stopped.set()
    with _two(tmp_path, NEW, OLD) as two:
        two.make()
        with pytest.raises(StorageError, match="was given up"):
            carry_unlike([two.way], Pace(0, stopped), TIMEOUT_MS, TIMEOUT_MS)


def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="image /nowhere"):
        digests.prepare(tmp_path / "digests", Path("/nowhere"))
