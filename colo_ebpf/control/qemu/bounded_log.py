# SPDX-License-Identifier: GPL-2.0-only
"""A log that another process appends to for as long as it lives, kept short from outside.

The writer has it open with O_APPEND: once it is cut to nothing, it writes on at its beginning. The
end of what was there is kept beside it (`.old`). A line that is written at that moment may be lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from colo_ebpf.control.state import atomic

_MOST_BYTES = 1 << 20
_KEPT_BYTES = 256 << 10
_log = logging.getLogger(__name__)


class BoundedLog:
    """One file of a run directory, which has little room and is needed for other things."""

    def __init__(self, path: Path) -> None:
        self._path, self._old = path, path.with_name(path.name + ".old")
        self._complained = False

    def begin(self) -> None:
        """Before a writer that is to begin anew: what the one before has said is kept."""
        self._try(self._put_aside)

    def cut(self) -> None:
        """If it has grown; to be called often. It never fails; that it cannot be cut is said."""
        try:
            grown = self._path.stat().st_size > _MOST_BYTES
        except OSError:
            return
        if grown:
            self._try(self._cut)

    def _try(self, cut: Callable[[], None]) -> None:
        try:
            with atomic.noted(self._path), contextlib.suppress(FileNotFoundError):
                cut()
        except OSError as e:
            if not self._complained:
                _log.warning("%s cannot be kept short: %s", self._path, e)
            self._complained = True
        else:
            self._complained = False

    def _put_aside(self) -> None:
        self._keep_end()
        self._path.unlink()

    def _cut(self) -> None:
        try:
            self._keep_end()
        finally:  # that there is no room for it is one more reason
            os.truncate(self._path, 0)

    def _keep_end(self) -> None:
        with self._path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _KEPT_BYTES))
            end = log.read(_KEPT_BYTES)
        self._old.write_bytes(end)
