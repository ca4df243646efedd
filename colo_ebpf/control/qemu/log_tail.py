# SPDX-License-Identifier: GPL-2.0-only
"""A file that QEMU appends lines to for as long as it lives.

What the lines say is summed up as they are read. A busy pair takes many checkpoints and each is a
few lines: from time to time the sum is put beside the file and the room of what it stands for is
given back. QEMU writes on where it was, and the next daemon begins with the sum.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from colo_ebpf.control.state import atomic

_CUT_BYTES = 128 << 10  # what the daemon can read between two heartbeats
_PART_BYTES = 1 << 20  # in memory at once, however much is there
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # linux/falloc.h
_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)

Sum = TypeVar("Sum")
Follow = Callable[[Sum, Sequence[bytes]], Sum]


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    """The sum of all that is before `at`."""

    at: int
    past: msgspec.Raw


class LogTail(Generic[Sum]):
    """`follow` gives the sum after some more whole lines, `empty` that of none."""

    def __init__(self, path: Path, empty: Sum, follow: Follow[Sum]) -> None:
        self._path, self._kept_path = path, path.with_suffix(".sum")
        self._follow = follow
        self._file: FileIO | None = None
        self._complained = False
        self._at, self._sum = self._kept(empty)

    def _kept(self, empty: Sum) -> tuple[int, Sum]:
        try:
            kept = msgspec.json.decode(self._kept_path.read_bytes(), type=_Kept)
            return kept.at, msgspec.json.decode(kept.past, type=type(empty))
        except (OSError, msgspec.DecodeError, RecursionError):
            return 0, empty

    def read(self) -> Sum:
        """All so far; a line that is half written is left for the next look. Raises OSError.

        The file stays open until `close`.
        """
        if self._file is None:
            self._file = self._path.open("rb", 0)
        while self._read_some(self._file):
            pass
        return self._sum

    def _read_some(self, file: FileIO) -> bool:
        """There may be more."""
        file.seek(self._at)
        data = file.read(_PART_BYTES)
        whole = data[: data.rfind(b"\n") + 1]
        full = len(data) == _PART_BYTES
        if full and not whole:
            whole = data  # no line of QEMU's is so long: it is not itself any more
        if whole:
            self._at += len(whole)
            self._sum = self._follow(self._sum, whole.splitlines())
        return full

    @property
    def last(self) -> Sum:
        """As of the last `read`."""
        return self._sum

    def cut(self) -> None:
        """If it has grown: keep the sum, then give back the room. The sum's own room is taken the
        first time, while there is some."""
        try:
            grown = self._path.stat().st_blocks * 512 >= _CUT_BYTES
            if not grown and self._kept_path.exists():
                return
            past = msgspec.Raw(msgspec.json.encode(self.read()))
            atomic.put(self._kept_path, msgspec.json.encode(_Kept(self._at, past)))
            if not grown:
                return
            with atomic.noted(self._path):
                _punch(self._path, self._at)
        except OSError as e:
            if not self._complained:
                _log.warning("%s cannot be cut: %s", self._path, e)
            self._complained = True
        else:
            self._complained = False

    @property
    def closed(self) -> bool:
        """It was not read yet, or is not any more."""
        return self._file is None

    def close(self) -> None:
        """Until the next `read`."""
        atomic.forget(self._path)
        atomic.forget(self._kept_path)
        if self._file is not None:
            self._file.close()
            self._file = None


def _punch(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        mode, zero = ctypes.c_int(_KEEP_SIZE | _PUNCH_HOLE), ctypes.c_long(0)
        if _libc.fallocate(fd, mode, zero, ctypes.c_long(size)):
            raise OSError(ctypes.get_errno(), "fallocate")
    finally:
        os.close(fd)
