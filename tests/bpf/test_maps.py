# SPDX-License-Identifier: GPL-2.0-only
"""Maps by their descriptors: what is read is what was written, on every CPU."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from colo_ebpf.datapath.bpf import libbpf, syscalls
from colo_ebpf.errors import DatapathError
from tests.capabilities import require

HASH, ARRAY, PER_CPU = 1, 2, 6  # enum bpf_map_type
ENTRIES = 6000  # more than are taken at once


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf")


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Iterator[syscalls.RawMap]:
    """Of one kind, with values of 12 bytes."""
    fd = libbpf.map_create(request.param, "odd", (4, 12, ENTRIES), 0, (0, 0, 0))
    yield syscalls.RawMap(fd)
    os.close(fd)


def _key(number: int) -> bytes:
    return struct.pack("=I", number)


@pytest.mark.parametrize("table", [HASH, ARRAY], indirect=True)
def test_what_is_read_is_what_was_written(table: syscalls.RawMap) -> None:
    table.set(_key(7), b"twelve bytes")
    assert table.get(_key(7)) == b"twelve bytes"
    assert table.cpus == 1


@pytest.mark.parametrize("table", [PER_CPU], indirect=True)
def test_a_value_of_each_cpu(table: syscalls.RawMap) -> None:
    each = [b"cpu %02d------" % cpu for cpu in range(table.cpus)]
    table.set(_key(7), b"".join(one.ljust(16, b"\0") for one in each))
    row = table.get(_key(7)) or b""
    assert [row[at : at + 12] for at in range(0, len(row), 16)] == [one[:12] for one in each]
    assert len(table.all()) == 16 * table.cpus * ENTRIES


@pytest.mark.parametrize("table", [HASH, ARRAY, PER_CPU], indirect=True)
def test_cleared_it_is_as_after_loading(table: syscalls.RawMap) -> None:
    for number in range(0, ENTRIES, 50):
        table.set(_key(number), b"twelve bytes".ljust(16 * table.cpus))
    table.clear()
    found = table.get(_key(0))
    assert found is None or not any(found)


@pytest.mark.parametrize("table", [HASH], indirect=True)
def test_more_than_are_taken_at_once_go(table: syscalls.RawMap) -> None:
    for number in range(ENTRIES):
        table.set(_key(number), b"twelve bytes")
    assert len(list(table.keys())) == ENTRIES
    table.clear()
    assert list(table.keys()) == []


@pytest.mark.parametrize("table", [HASH], indirect=True)
def test_what_is_gone_may_be_deleted(table: syscalls.RawMap) -> None:
    table.delete(_key(1))
    assert table.get(_key(1)) is None
    assert table.next_key(None) is None


def test_what_fails_says_what_and_why() -> None:
    with pytest.raises(DatapathError, match="open pinned object /nonexistent: No such file"):
        syscalls.obj_get("/nonexistent")
    with pytest.raises(DatapathError, match="test run: Bad file descriptor"):
        syscalls.test_run(2**20, bytes(64))
