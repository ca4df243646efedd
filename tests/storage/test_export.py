# SPDX-License-Identifier: GPL-2.0-only
"""Real exports, good and bad: each is refused in words, within the deadline."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from colo_ebpf.errors import StorageError
from colo_ebpf.storage.preflight import LocalDisk, facts, preflight
from tests.capabilities import require
from tests.storage.servers import free_port, image, serve

SIZE = 4 << 20
DISKS = (LocalDisk("parent0", "raw", SIZE, 512),)
TIMEOUT_MS = 1000


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("qemu-nbd")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_good_one_is_accepted(tmp_path: Path, address: str) -> None:
    with serve(image(tmp_path / "i", SIZE), address=address) as (at, _):
        await preflight(DISKS, at.host, at.port, TIMEOUT_MS)
        found = facts(at.name, at.host, at.port, TIMEOUT_MS)
        assert (found.size_bytes, found.read_only, found.can_flush) == (SIZE, False, True)


async def test_another_size_is_refused(tmp_path: Path) -> None:
    with (
        serve(image(tmp_path / "i", SIZE // 2)) as (at, _),
        pytest.raises(StorageError, match=f"{SIZE} bytes here, {SIZE // 2} bytes in export"),
    ):
        await preflight(DISKS, at.host, at.port, TIMEOUT_MS)


async def test_a_read_only_one_is_refused(tmp_path: Path) -> None:
    with (
        serve(image(tmp_path / "i", SIZE), "-r") as (at, _),
        pytest.raises(StorageError, match=r"parent0 on 127.0.0.1:.*: is read-only"),
    ):
        await preflight(DISKS, at.host, at.port, TIMEOUT_MS)


async def test_other_disks_are_refused(tmp_path: Path) -> None:
    with (
        serve(image(tmp_path / "i", SIZE), name="parent1") as (at, _),
        pytest.raises(StorageError, match=r"1 disks here \(parent0\), 1 on .* \(parent1\)"),
    ):
        await preflight(DISKS, at.host, at.port, TIMEOUT_MS)


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Connection refused: is its QEMU running"):
        await preflight(DISKS, "127.0.0.1", free_port(), TIMEOUT_MS)


async def test_a_server_that_hangs_costs_the_deadline_and_no_thread(tmp_path: Path) -> None:
    with serve(image(tmp_path / "i", SIZE)) as (at, process):
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(StorageError, match=f"no answer within {TIMEOUT_MS} ms"):
            await preflight(DISKS, at.host, at.port, TIMEOUT_MS)
        os.kill(process.pid, signal.SIGCONT)
        await preflight(DISKS, at.host, at.port, TIMEOUT_MS)  # the same thread is free again


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-x\r\n", b"NBDMAGIC", b"\0" * 4096])
async def test_what_is_no_nbd_server_is_told_apart(greeting: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(greeting)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(StorageError, match=r"on 127\.0\.0\.1:"):
            await preflight(DISKS, "127.0.0.1", listener.getsockname()[1], TIMEOUT_MS)
        thread.join()
