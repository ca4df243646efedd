# SPDX-License-Identifier: GPL-2.0-only
"""The history in a file that outlives daemon and host, written by a thread.

A disk that hangs must not hold up a takeover: whoever has an entry leaves it in a queue and goes
on. The file is bounded: its older half goes when it is full.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from pathlib import Path

from colo_ebpf.control.state import atomic
from colo_ebpf.control.state.history import FILE, MOST_BYTES, Entry, line
from colo_ebpf.errors import ControlError

_MOST_WAITING = 1000
_END_S = 1.0
_MODE = 0o600  # who served when is for root
_log = logging.getLogger(__name__)


class HistoryFile:
    """`<state_dir>/history.jsonl`."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._waiting: queue.Queue[Entry | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._complained = False

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def add(self, entry: Entry) -> None:
        """It will be written, unless a thousand wait already. Never waits, never fails."""
        try:
            self._waiting.put_nowait(entry)
        except queue.Full:
            self._complain("the disk takes too long")

    def end(self) -> None:
        """Write what waits, and wait a little for that."""
        if not self._thread.is_alive():
            return
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(_END_S)

    def _run(self) -> None:
        while (entry := self._waiting.get()) is not None:
            try:
                self._append(line(entry))
                self._complained = False
            except (OSError, ControlError) as e:
                self._complain(str(e))

    def _append(self, data: bytes) -> None:
        with atomic.noted(self._path):
            fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, _MODE)
            try:
                size = os.fstat(fd).st_size
                whole = not size or os.pread(fd, 1, size - 1) == b"\n"
                os.write(fd, data if whole else b"\n" + data)
                os.fsync(fd)
            finally:
                os.close(fd)
        if size + len(data) > MOST_BYTES:
            self._halve()

    def _halve(self) -> None:
        kept = self._path.read_bytes()[-MOST_BYTES // 2 :]
        atomic.write(self._path, kept.partition(b"\n")[2], mode=_MODE)

    def _complain(self, why: str) -> None:
        if not self._complained:
            _log.warning("the history of the VM is not kept: %s", why)
        self._complained = True
