# SPDX-License-Identifier: GPL-2.0-only
"""A command that is told to end (SIGTERM) takes down first what it has made, like one that is
interrupted; then it ends by that signal, as whoever sent it expects."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _Told(BaseException):
    """SIGTERM. No handler of errors takes it for one."""


def _raise(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: taking down goes to its end
    raise _Told


@contextmanager
def taken_down_first() -> Iterator[None]:
    """For what takes down its own when any exception passes. In the main thread only."""
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    except _Told:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
