# SPDX-License-Identifier: GPL-2.0-only
"""Real NBD servers for tests: qemu-nbd on loopback, one image each."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colo_ebpf import addresses
from colo_ebpf.storage.nbd import ExportAddress

_START_S = 20


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on."""
    with socket.socket(addresses.family(address)) as s:
        s.bind((address, 0))
        return int(s.getsockname()[1])


@contextmanager
def serve(
    image: Path, *options: str, name: str = "parent0", address: str = "127.0.0.1"
) -> Iterator[tuple[ExportAddress, subprocess.Popen[bytes]]]:
    """qemu-nbd with the image, until left. It has forked when its socket is there."""
    port = free_port(address)
    pid_file = image.with_suffix(".pid")
    pid_file.unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            *("qemu-nbd", "-t", "-e", "8", "-f", "raw", "-x", name, "-b", address),
            *("-p", str(port), "--pid-file", str(pid_file), *options, str(image)),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until_it_listens(process, pid_file)
        yield ExportAddress(name, address, port), process
    finally:
        process.kill()
        process.wait()


def until_it_listens(process: subprocess.Popen[bytes], pid_file: Path) -> None:
    """It writes its pid file once it listens."""
    for _ in range(_START_S * 20):
        if pid_file.exists():
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise RuntimeError(f"qemu-nbd ended at once with {process.wait(0.05)}")
    raise RuntimeError("qemu-nbd does not listen")


def image(path: Path, size_bytes: int, content: bytes = b"") -> Path:
    """A sparse file."""
    with path.open("wb") as file:
        file.write(content)
        file.truncate(size_bytes)
    return path
