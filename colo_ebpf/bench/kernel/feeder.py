# SPDX-License-Identifier: GPL-2.0-only
"""Feeds QEMU's `colo-compare` as fast as it goes, and counts what leaves."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from colo_ebpf.bench.kernel.qemu_compare import QemuCompare
from colo_ebpf.errors import BenchError

_BLOCK = 256  # frames of one VM before the other's turn: QEMU keeps up to 1024
_SIOCOUTQ = 0x5411
_READ_BYTES = 1 << 18
_PATIENCE_S = 30.0


class QemuFeeder(QemuCompare):
    """`with QemuFeeder(directory) as qemu`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._left_bytes = 0
        self._reader: threading.Thread | None = None

    def __enter__(self) -> QemuFeeder:
        super().__enter__()
        self.released()  # nothing is on its way any more
        self._reader = threading.Thread(target=self._read, name="colo-compare-out")
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._ends["out"].shutdown(socket.SHUT_RDWR)
            self._reader.join()
        super().__exit__()

    def pin(self, cpu: int) -> None:
        """All its threads on one CPU."""
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {cpu})

    def cpu_ns(self) -> int:
        """CPU time of the process, all threads."""
        return time.clock_gettime_ns(~self.pid << 3 | 2)  # CPUCLOCK_SCHED of a process

    def both(self, frames: list[bytes], svm_first: bool) -> None:
        """Both VMs send these, blocks of one before blocks of the other; all must leave."""
        for start in range(0, len(frames), _BLOCK):
            block = frames[start : start + _BLOCK]
            data = b"".join(struct.pack("!I", len(frame)) + frame for frame in block)
            wanted = self._left_bytes + len(data)
            for name in ("secondary", "primary") if svm_first else ("primary", "secondary"):
                self._ends[name].sendall(data)
                self._until(partial(self._all_read, name))
            self._until(partial(self._all_left, wanted))
            if self._left_bytes != wanted:
                raise BenchError("colo-compare let out more than it was given")

    def _read(self) -> None:
        out = self._ends["out"]
        buffer = bytearray(_READ_BYTES)
        try:
            while size := out.recv_into(buffer):
                self._left_bytes += size
        except OSError:  # closed, or nothing for long: `both` has noticed
            return

    def _all_read(self, name: str) -> bool:
        """QEMU has taken all we sent."""
        return fcntl.ioctl(self._ends[name].fileno(), _SIOCOUTQ, bytes(4)) == bytes(4)

    def _all_left(self, wanted_bytes: int) -> bool:
        return self._left_bytes >= wanted_bytes

    @staticmethod
    def _until(done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not done():
            if time.monotonic() > deadline:
                raise BenchError("colo-compare did not let out what both VMs sent")
            time.sleep(0)  # the reader's turn
