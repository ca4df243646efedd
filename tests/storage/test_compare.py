# SPDX-License-Identifier: GPL-2.0-only
"""Real exports compared: equal, different, written to meanwhile, gone meanwhile."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from colo_ebpf.errors import StorageError
from colo_ebpf.storage.nbd import Connection, ExportAddress
from colo_ebpf.storage.verify import Comparison, Range, compare
from tests.capabilities import require
from tests.storage.servers import image, serve

SIZE = 4 << 20
TIMEOUT_MS = 5000
DATA = random.Random(7).randbytes(1 << 20)


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("qemu-nbd")


@contextmanager
def _two(
    directory: Path, one: bytes, other: bytes, sizes: tuple[int, int] = (SIZE, SIZE)
) -> Iterator[tuple[Connection, Connection, list[int]]]:
    with ExitStack() as stack:
        connections, pids = [], []
        for name, content, size in zip("xy", (one, other), sizes, strict=True):
            served = serve(image(directory / name, size, content))
            at, process = stack.enter_context(served)
            connections.append(stack.enter_context(Connection(at, TIMEOUT_MS)))
            pids.append(process.pid)
        yield connections[0], connections[1], pids


def test_equal_images_of_which_only_the_data_is_read(tmp_path: Path) -> None:
    with _two(tmp_path, DATA, DATA) as (x, y, _):
        told: list[tuple[int, int]] = []
        found = compare(x, y, 5, lambda done, total: told.append((done, total)))
    assert found == Comparison(SIZE, len(DATA), SIZE - len(DATA), 0, (), complete=True)
    assert told[-1] == (SIZE, SIZE)
    assert told == sorted(told)


def test_zeroes_that_are_stored_on_one_side_only_are_equal(tmp_path: Path) -> None:
    with _two(tmp_path, bytes(1 << 20), b"") as (x, y, _):
        found = compare(x, y, 5)
    assert (found.differences, found.read_bytes) == ((), 1 << 20)


def test_differences_are_told_by_the_sector(tmp_path: Path) -> None:
    other = bytearray(DATA)
    other[1000] ^= 1
    other[70_000:70_600] = bytes(600)
    with _two(tmp_path, DATA, bytes(other)) as (x, y, _):
        found = compare(x, y, 5)
    assert found.differences == (Range(512, 512), Range(69632, 1024))
    assert found.complete


def test_no_more_is_told_than_was_asked_for(tmp_path: Path) -> None:
    other = bytearray(DATA)
    for at in range(20):
        other[at * 4096] ^= 1
    with _two(tmp_path, DATA, bytes(other)) as (x, y, _):
        found = compare(x, y, 5)
    assert len(found.differences) == 5
    assert not found.complete


def test_images_of_different_size_are_no_pair(tmp_path: Path) -> None:
    with (
        _two(tmp_path, DATA, DATA, (SIZE, 2 * SIZE)) as (x, y, _),
        pytest.raises(StorageError, match="they are no images of one disk"),
    ):
        compare(x, y, 5)


def _writing(x: ExportAddress, y: ExportAddress, stop: threading.Event) -> Callable[[], None]:
    """The same writes to both, one side always a moment before the other."""

    def write() -> None:
        draw = random.Random(11)
        with Connection(x, TIMEOUT_MS) as one, Connection(y, TIMEOUT_MS) as other:
            while not stop.is_set():
                data, at = draw.randbytes(4096), draw.randrange(SIZE // 4096) * 4096
                for connection in (one, other):
                    connection.handle.pwrite(data, at)
                    stop.wait(0.002)

    return write


def test_what_is_written_to_meanwhile_is_equal(tmp_path: Path) -> None:
    again = 0
    with _two(tmp_path, DATA * 4, DATA * 4) as (x, y, _):
        stop = threading.Event()
        writer = threading.Thread(target=_writing(x.address, y.address, stop))
        writer.start()
        try:
            for _ in range(40):
                found = compare(x, y, 5)
                assert found.differences == ()
                again += found.again_bytes
        finally:
            stop.set()
            writer.join()
    assert again > 0, "no look fell into a write: this showed nothing"


def test_a_server_that_dies_or_hangs_is_an_error_in_time(tmp_path: Path) -> None:
    for number, words in ((signal.SIGKILL, "closed"), (signal.SIGSTOP, "no answer within")):
        with _two(tmp_path, DATA, DATA) as (x, y, pids):
            os.kill(pids[1], number)
            with pytest.raises(StorageError, match=f"on 127.0.0.1.*{words}"):
                compare(x, y, 5)


def test_a_server_that_dies_with_requests_unread_closed_the_connection(tmp_path: Path) -> None:
    with _two(tmp_path, DATA, DATA) as (x, _, pids):
        os.kill(pids[0], signal.SIGSTOP)
        reading = x.start_read(0, 4096)
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(StorageError, match=r"on 127\.0\.0\.1.*closed"):
            x.finish_read(reading)
