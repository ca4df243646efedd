# SPDX-License-Identifier: GPL-2.0-only
"""What two hosts read of a disk that they share, with real exports: the second one has what the
first one had at the last checkpoint."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from colo_ebpf.errors import StorageError
from colo_ebpf.storage.nbd import Connection
from colo_ebpf.storage.sample import Sampling
from colo_ebpf.storage.verify import CHUNK_BYTES, LOOKS, Comparison, Range
from tests.capabilities import require
from tests.storage.servers import image, serve

SIZE, MOST = 4 << 20, 5
DATA = random.Random(7).randbytes(1 << 20)
_TIMEOUT_MS = 5000


@dataclass
class Hosts:
    """Both exports. A checkpoint makes the replica equal, but for what a cache there keeps."""

    local: Connection
    replica: Connection
    cached: set[int] = field(default_factory=set)  # sectors that the replica's host reads stale
    busy: set[int] = field(default_factory=set)  # sectors that the guest writes to all the time
    checkpoints: int = 0

    def write(self, at: int, data: bytes) -> None:
        """As the guest does."""
        self.local.handle.pwrite(data, at)

    def checkpoint(self) -> None:
        """And what the guest writes next."""
        self.checkpoints += 1
        for at in range(0, len(DATA), 512):
            if at not in self.cached:
                self.replica.handle.pwrite(self.local.handle.pread(512, at), at)
        for at in self.busy:
            self.write(at, self.checkpoints.to_bytes(512, "little"))

    def sample(self, wanted_bytes: int = SIZE) -> Comparison:
        """Places drawn the same way in each run."""
        sampling = Sampling(self.local, self.replica, self.checkpoint, random.Random(3))
        return sampling.run(wanted_bytes, MOST)


@contextmanager
def _hosts(directory: Path, sizes: tuple[int, int] = (SIZE, SIZE)) -> Iterator[Hosts]:
    require("qemu-nbd")
    with ExitStack() as stack:
        found = []
        for name, size in zip("xy", sizes, strict=True):
            at, _ = stack.enter_context(serve(image(directory / name, size, DATA)))
            found.append(stack.enter_context(Connection(at, _TIMEOUT_MS)))
        yield Hosts(*found)


def test_equal_disks_need_no_checkpoint_and_zeroes_are_not_read(tmp_path: Path) -> None:
    with _hosts(tmp_path) as hosts:
        found = hosts.sample()
    assert found == Comparison(SIZE, len(DATA), SIZE - len(DATA), 0, (), complete=True)
    assert hosts.checkpoints == 0


def test_no_more_is_read_than_was_asked_for(tmp_path: Path) -> None:
    with _hosts(tmp_path) as hosts:
        found = hosts.sample(3 * CHUNK_BYTES)
        assert found.read_bytes == 3 * CHUNK_BYTES
        assert found.complete


def test_what_was_written_since_the_last_checkpoint_is_equal_after_the_next(tmp_path: Path) -> None:
    with _hosts(tmp_path) as hosts:
        for at in range(0, len(DATA), 8192):
            hosts.write(at, b"new" * 1024)
        found = hosts.sample()
    assert (found.differences, found.unsettled_bytes, hosts.checkpoints) == ((), 0, 1)
    assert found.again_bytes > 0


def test_a_host_that_reads_something_old_is_found_by_the_sector(tmp_path: Path) -> None:
    with _hosts(tmp_path) as hosts:
        hosts.cached = {65536, 66048, 700_416}
        hosts.write(65536, b"n" * 2048)
        hosts.write(700_416, b"n" * 512)
        found = hosts.sample()
    assert found.differences == (Range(65536, 1024), Range(700_416, 512))
    assert (found.complete, hosts.checkpoints) == (True, 1)


def test_no_more_is_told_than_was_asked_for(tmp_path: Path) -> None:
    with _hosts(tmp_path) as hosts:
        hosts.cached = set(range(0, len(DATA), 4096))
        for at in hosts.cached:
            hosts.write(at, b"n" * 512)
        found = hosts.sample()
    assert (len(found.differences), found.complete) == (MOST, False)


def test_what_is_written_to_all_the_time_is_neither_equal_nor_different(tmp_path: Path) -> None:
    with _hosts(tmp_path) as hosts:
        hosts.busy, hosts.cached = {8192}, {131_072}
        hosts.write(8192, b"n" * 512)
        hosts.write(131_072, b"n" * 512)
        found = hosts.sample()
    assert found.differences == (Range(131_072, 512),)
    assert (found.unsettled_bytes, hosts.checkpoints) == (512, LOOKS - 1)


def test_disks_of_different_size_are_not_one(tmp_path: Path) -> None:
    with (
        _hosts(tmp_path, (SIZE, 2 * SIZE)) as hosts,
        pytest.raises(StorageError, match="they are no images of one disk"),
    ):
        hosts.sample()
