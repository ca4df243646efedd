# SPDX-License-Identifier: GPL-2.0-only
"""What a bitmap of a real export marks is carried to another, and nothing else is touched."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from colo_ebpf.errors import StorageError
from colo_ebpf.storage.carry import Pace, carry
from colo_ebpf.storage.nbd import ExportAddress
from tests.capabilities import require
from tests.storage.servers import image, serve, until_it_listens

SIZE, PIECE = 4 << 20, 64 << 10
TIMEOUT_MS = 5000
OLD, NEW = (random.Random(seed).randbytes(SIZE) for seed in (7, 8))
BITMAP = "since"


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("qemu-nbd")


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def _written_since(directory: Path, writes: list[tuple[int, bytes]]) -> Path:
    """A qcow2 image of OLD, with a bitmap that marks these writes."""
    raw, made = directory / "old", directory / "here"
    raw.write_bytes(OLD)
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(made))
    _run("qemu-img", "bitmap", "--add", "-g", str(PIECE), str(made), BITMAP)
    for number, (at, data) in enumerate(writes):
        piece = directory / f"piece{number}"
        piece.write_bytes(data)
        _run("qemu-io", "-c", f"write -s {piece} {at} {len(data)}", str(made))
    return made


@contextmanager
def _ways(
    here: Path, there: Path, directory: Path, *options: str
) -> Iterator[tuple[list[tuple[ExportAddress, ExportAddress]], subprocess.Popen[bytes]]]:
    """The image with the bitmap on a unix socket, the other one on a port."""
    path, pid_file = directory / "here.sock", directory / "here.pid"
    server = subprocess.Popen(
        [
            *("qemu-nbd", "-t", "-r", "-f", "qcow2", "-B", BITMAP, "-x", "parent0"),
            *("-k", path, "--pid-file", pid_file, here),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until_it_listens(server, pid_file)
        with serve(there, *options) as (at, process):
            yield [(ExportAddress("parent0", path=str(path)), at)], process
    finally:
        server.kill()
        server.wait()


def _go_on(rate_bytes: int = 0) -> Pace:
    return Pace(rate_bytes, threading.Event())


def test_what_is_marked_arrives_and_the_rest_stays(tmp_path: Path) -> None:
    zeroes = (8 * PIECE, bytes(PIECE))
    here = _written_since(tmp_path, [(0, NEW[:512]), (3 * PIECE + 4096, NEW[:PIECE]), zeroes])
    there = image(tmp_path / "there", SIZE, b"\xee" * SIZE)
    told: list[tuple[int, int]] = []
    with _ways(here, there, tmp_path) as (ways, _):
        carry(ways, BITMAP, _go_on(), TIMEOUT_MS, lambda done, total: told.append((done, total)))
    wanted = bytearray(OLD)
    wanted[:512] = NEW[:512]
    wanted[3 * PIECE + 4096 : 4 * PIECE + 4096] = NEW[:PIECE]
    wanted[8 * PIECE : 9 * PIECE] = bytes(PIECE)
    found = there.read_bytes()
    for number in range(SIZE // PIECE):
        piece = slice(number * PIECE, (number + 1) * PIECE)
        marked = number in (0, 3, 4, 8)
        assert found[piece] == (wanted[piece] if marked else b"\xee" * PIECE), number
    assert told[-1] == (4 * PIECE, 4 * PIECE)
    assert told == sorted(told)


def test_zeroes_take_no_room(tmp_path: Path) -> None:
    here = _written_since(tmp_path, [(0, bytes(SIZE))])
    there = image(tmp_path / "there", SIZE, OLD)
    with _ways(here, there, tmp_path, "--discard=unmap") as (ways, _):
        carry(ways, BITMAP, _go_on(), TIMEOUT_MS)
    assert there.read_bytes() == bytes(SIZE)
    assert there.stat().st_blocks * 512 < SIZE // 4


def test_a_bitmap_that_is_not_there_is_said(tmp_path: Path) -> None:
    here = _written_since(tmp_path, [])
    there = image(tmp_path / "there", SIZE, OLD)
    with (
        _ways(here, there, tmp_path) as (ways, _),
        pytest.raises(StorageError, match=r"export parent0 on .*here\.sock"),
    ):
        carry(ways, "another", _go_on(), TIMEOUT_MS)


def test_images_of_different_sizes_are_none_of_one_disk(tmp_path: Path) -> None:
    here = _written_since(tmp_path, [(0, NEW[:PIECE])])
    there = image(tmp_path / "there", SIZE // 2, OLD[: SIZE // 2])
    with (
        _ways(here, there, tmp_path) as (ways, _),
        pytest.raises(StorageError, match="they are no images of one disk"),
    ):
        carry(ways, BITMAP, _go_on(), TIMEOUT_MS)
    assert there.read_bytes() == OLD[: SIZE // 2]


def test_one_that_is_given_up_ends(tmp_path: Path) -> None:
    here = _written_since(tmp_path, [(0, NEW)])
    there = image(tmp_path / "there", SIZE, OLD)
    stopped = threading.Event()
    with (
        _ways(here, there, tmp_path) as (ways, _),
        pytest.raises(StorageError, match="given up"),
    ):
        carry(ways, BITMAP, Pace(0, stopped), TIMEOUT_MS, lambda done, total: stopped.set())
    assert there.read_bytes()[PIECE:] == OLD[PIECE:]


def test_a_peer_that_dies_ends_it(tmp_path: Path) -> None:
    here = _written_since(tmp_path, [(0, NEW)])
    there = image(tmp_path / "there", SIZE, OLD)
    with (
        _ways(here, there, tmp_path) as (ways, process),
        pytest.raises(StorageError, match="closed the connection"),
    ):
        carry(ways, BITMAP, _go_on(), TIMEOUT_MS, lambda done, total: process.kill())


def test_the_rate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are counted, not taken."""
    waited: list[float] = []

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waited.append(timeout)
            return False

    pace = Pace(1000, Clock())
    for now_s in (100.0, 100.0, 100.0, 200.0, 200.0):  # nothing is saved up while nothing is sent
        monkeypatch.setattr("time.monotonic", lambda at=now_s: at)
        pace.spend(500)
    assert waited == [0.5, 1.0, 0.5]


def test_a_copy_to_a_peer_that_hangs_can_be_given_up(tmp_path: Path) -> None:
    """A thread that waited for the peer would keep the daemon from ending."""
    here = _written_since(tmp_path, [(0, NEW)])
    there = image(tmp_path / "there", SIZE)
    stopped, failed = threading.Event(), []

    def copy() -> None:
        try:
            carry(ways, BITMAP, Pace(0, stopped), 600_000)
        except StorageError as e:
            failed.append(str(e))

    with _ways(here, there, tmp_path) as (ways, server):
        server.send_signal(signal.SIGSTOP)
        thread = threading.Thread(target=copy)
        thread.start()
        stopped.set()
        thread.join(30)
        assert not thread.is_alive()
    assert len(failed) == 1
    assert "given up" in failed[0]
