# SPDX-License-Identifier: GPL-2.0-only
"""How a VM fared, every ten seconds of the last twelve hours: for `colo-ebpf report`. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from colo_ebpf.control.checkpoint.primary import Cause, Loaded
from colo_ebpf.control.decision.snapshot import MS

EVERY_NS = 10_000_000_000
MOST = 12 * 360
MOST_AT_ONCE = 200  # the daemon says no more in one go: it has its beats


class Sample(msgspec.Struct, frozen=True):
    """Of one moment; of checkpoints, what came since the one before."""

    at_s: float  # Unix time
    state: str
    peer: str  # its state; "" if it is not heard
    held_frames: int
    oldest_ms: float  # of the frames that are held
    checkpoints: dict[str, int]  # by cause
    pause_ms: float  # the longest of them


class Samples:
    """The newest ones, numbered from the first that this daemon took."""

    def __init__(self) -> None:
        self._kept: deque[Sample] = deque(maxlen=MOST)
        self._taken = 0
        self._due_ns = 0
        self._since_ns = 0
        self._counted: dict[Cause, int] = {}

    def due(self, now_ns: int) -> bool:
        """It is time for the next one."""
        return now_ns >= self._due_ns

    def add(
        self,
        *,
        at_s: float,
        now_ns: int,
        state: str,
        peer: str,
        held_frames: int,
        oldest_ms: float,
        by_cause: Mapping[Cause, int],
        recent: Iterable[Loaded],
    ) -> None:
        """`by_cause`: of all checkpoints; `recent`: the last ones."""
        since = {
            cause.value: count - self._counted.get(cause, 0)
            for cause, count in by_cause.items()
            if count > self._counted.get(cause, 0)
        }
        pauses = [one.pause_ns for one in recent if one.resumed_ns >= self._since_ns]
        pause_ms = max(pauses, default=0) / MS
        self._kept.append(Sample(at_s, state, peer, held_frames, oldest_ms, since, pause_ms))
        self._taken += 1
        self._counted = dict(by_cause)
        self._since_ns, self._due_ns = now_ns, now_ns + EVERY_NS

    def after(self, number: int) -> dict[str, Any]:
        """Those from this number on, as many as fit, and the number to go on with."""
        first = self._taken - len(self._kept)
        begin = max(number, first)
        end = min(begin + MOST_AT_ONCE, self._taken)
        rows = [self._kept[n - first] for n in range(begin, end)]
        return {"rows": msgspec.to_builtins(rows), "next": end, "more": end < self._taken}
