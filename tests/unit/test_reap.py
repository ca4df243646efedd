# SPDX-License-Identifier: GPL-2.0-only
"""A table is walked a few entries at a time, and left alone for a while after each walk."""

from __future__ import annotations

from colo_ebpf.datapath.maps.reap import REST_NS, Reaper


class _Table:
    """Keys in the order they were put in; it counts what it is asked."""

    def __init__(self, entries: int) -> None:
        self.entries = {number.to_bytes(2): b"" for number in range(entries)}
        self.asked = 0

    def next_key(self, key: bytes | None) -> bytes | None:
        self.asked += 1
        return next((one for one in self.entries if key is None or one > key), None)

    def get(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def delete(self, key: bytes) -> None:
        del self.entries[key]


def _beat(reaper: Reaper, now_ns: int) -> int:
    return reaper.step(now_ns, lambda value: True) if now_ns >= reaper.due_ns else 0


def test_a_walk_takes_several_beats_and_is_followed_by_a_rest() -> None:
    table = _Table(60)
    reaper = Reaper(table)  # type: ignore[arg-type]
    gone = []
    while reaper.due_ns <= 1:
        gone.append(_beat(reaper, 1))
    assert sum(gone) == 60
    assert max(gone) < 60
    asked = table.asked
    assert _beat(reaper, REST_NS) == 0
    assert table.asked == asked
    table.entries[b"new"] = b""
    assert _beat(reaper, REST_NS + 1) == 1
