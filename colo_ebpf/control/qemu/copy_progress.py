# SPDX-License-Identifier: GPL-2.0-only
"""How a copy to the other host gets on: whether it moves, how fast, whether it will end. Pure.

A copy may take as long as it needs: hours for a large disk on a slow link. What is bounded is the
time in which nothing comes of it: nothing was copied, or each pass over the memory found as much
to copy as the one before. Times are boot times in nanoseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from colo_ebpf.model import Progress

_MS, _S = 1_000_000, 1_000_000_000
_SAMPLE_NS, _SAMPLES = _S // 2, 20  # the rate is that of the last ten seconds
_IN_VAIN = 3  # passes over the memory in a row that left as much as the ones before
_LESS = 0.98  # of the least so far: a pass that leaves so much has brought something


class Advance:
    """Of one copy: `moved` has to be told each change that shows it lives."""

    def __init__(self, limit_ms: int, now_ns: int) -> None:
        self._limit_ms = limit_ms
        self._signs: tuple[int, ...] = ()
        self._moved_ns = now_ns
        self._samples: deque[tuple[int, int]] = deque(maxlen=_SAMPLES + 1)

    def look(self, done_bytes: int, signs: tuple[int, ...], now_ns: int) -> str:
        """Why it is given up ("" while it is not). It moves when one of the signs has changed."""
        if signs != self._signs:
            self._signs, self._moved_ns = signs, now_ns
        if not self._samples or now_ns - self._samples[-1][0] >= _SAMPLE_NS:
            self._samples.append((now_ns, done_bytes))
        if now_ns - self._moved_ns > self._limit_ms * _MS:
            return f"no progress for {self._limit_ms} ms"
        return ""

    @property
    def rate_bytes_s(self) -> int:
        """Of late; 0: not known yet."""
        if len(self._samples) < 3:
            return 0
        (first_ns, first), (last_ns, last) = self._samples[0], self._samples[-1]
        return max(0, (last - first) * _S // (last_ns - first_ns))


@dataclass(frozen=True, slots=True)
class _Least:
    """The pass that found least to copy."""

    left_bytes: int
    since_ns: int


class MemoryAdvance:
    """Of a migration, from `ram` of query-migrate. QEMU goes over the memory in passes: each copies
    what was written during the one before, and the last stops the VM."""

    def __init__(self, limit_ms: int, now_ns: int) -> None:
        self._limit_ms = limit_ms
        self._advance = Advance(limit_ms, now_ns)
        self._pass, self._in_vain = 0, 0
        self._least: _Least | None = None
        self.progress = Progress("memory", 0, 0)

    def look(self, ram: Mapping[str, int], now_ns: int) -> str:
        """Why it is given up ("" while it is not)."""
        sent, total = ram.get("transferred", 0), ram.get("total", 0)
        left, number = ram.get("remaining", total), ram.get("dirty-sync-count", 0)
        stalled = self._advance.look(sent, (sent, left, number), now_ns)
        rate = self._advance.rate_bytes_s
        self.progress = Progress("memory", total - left, total, rate)
        if number != self._pass:
            self._pass = number
            self._begin_pass(left, now_ns)
        return stalled or self._hopeless(ram, rate, now_ns)

    def _begin_pass(self, left: int, now_ns: int) -> None:
        if self._least is None or left < self._least.left_bytes * _LESS:
            self._least, self._in_vain = _Least(left, now_ns), 0
        else:
            self._in_vain += 1

    def _hopeless(self, ram: Mapping[str, int], rate: int, now_ns: int) -> str:
        if self._least is None or self._in_vain < _IN_VAIN:
            return ""
        if now_ns - self._least.since_ns <= self._limit_ms * _MS:
            return ""
        written = ram.get("dirty-pages-rate", 0) * ram.get("page-size", 0)
        return (
            f"the guest writes to its memory ({written >> 20} MiB/s) as fast as the link carries "
            f"it ({rate >> 20} MiB/s): give the link more, or wait until the guest does less"
        )
