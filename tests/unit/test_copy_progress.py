# SPDX-License-Identifier: GPL-2.0-only
"""When a copy is given up: never for being long, always for bringing nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf.cli import text
from colo_ebpf.control.qemu.copy_progress import Advance, MemoryAdvance
from colo_ebpf.model import Progress

S = 1_000_000_000
LIMIT_MS = 10_000
MIB = 1 << 20


@given(st.lists(st.integers(1, 9 * S), min_size=1, max_size=200))
def test_what_moves_is_never_given_up(pauses: list[int]) -> None:
    advance, now = Advance(LIMIT_MS, 0), 0
    for done, pause in enumerate(pauses):
        now += pause
        assert advance.look(done, (done,), now) == ""


def test_what_stands_is_given_up_after_the_limit() -> None:
    advance = Advance(LIMIT_MS, 0)
    assert advance.look(5, (5, 0), 100 * S) == "", "this is the first that is seen of it"
    assert advance.look(5, (5, 0), 110 * S) == ""
    assert advance.look(5, (5, 1), 111 * S) == "", "another sign of life counts too"
    assert advance.look(5, (5, 1), 121 * S) == ""
    assert advance.look(5, (5, 1), 122 * S) == "no progress for 10000 ms"


def test_the_rate_is_that_of_late() -> None:
    advance = Advance(LIMIT_MS, 0)
    done = 0
    for second in range(60):
        assert second > 1 or advance.rate_bytes_s == 0
        done += (1 if second < 30 else 7) * MIB
        advance.look(done, (done,), second * S)
    assert advance.rate_bytes_s == 7 * MIB


def _ram(sent: int, left: int, number: int) -> dict[str, int]:
    return {
        "transferred": sent * MIB,
        "total": 1000 * MIB,
        "remaining": left * MIB,
        "dirty-sync-count": number,
        "dirty-pages-rate": 256 * 100,
        "page-size": 4096,
    }


def test_memory_may_take_hours_while_its_passes_shrink() -> None:
    memory, now, sent = MemoryAdvance(LIMIT_MS, 0), 0, 0
    for number, left in enumerate((1000, 800, 640, 512, 400), 1):
        for part in range(left):
            now, sent = now + 9 * S, sent + 1
            assert memory.look(_ram(sent, left - part, number), now) == ""
    assert memory.progress == Progress("memory", 999 * MIB, 1000 * MIB, MIB // 9)
    assert memory.progress.left_s == 9


def test_memory_that_changes_as_fast_as_it_is_sent_is_given_up_in_words() -> None:
    memory, now, sent, said = MemoryAdvance(LIMIT_MS, 0), 0, 0, ""
    while not said:
        now, sent = now + S, sent + 100
        number = 1 + sent // 1000  # each pass finds all of it to copy again
        said = memory.look(_ram(sent, 1000 - sent % 1000, number), now)
        assert number <= 5
    assert number == 4
    assert "writes to its memory (100 MiB/s) as fast as the link carries it (100 MiB/s)" in said


def test_a_guest_that_writes_a_little_less_than_the_link_carries_is_waited_for() -> None:
    memory, now, sent, left = MemoryAdvance(LIMIT_MS, 0), 0, 0, 1000.0
    for number in range(1, 60):
        now, sent = now + int(left * S / 10), sent + int(left)
        assert memory.look(_ram(sent, int(left), number), now) == ""
        left *= 0.95


def test_memory_that_stands_is_given_up() -> None:
    memory = MemoryAdvance(LIMIT_MS, 0)
    assert memory.look({}, 0) == ""
    assert memory.look(_ram(3, 997, 1), 9 * S) == ""
    assert memory.look(_ram(3, 997, 1), 20 * S) == "no progress for 10000 ms"


def test_status_says_how_fast_and_how_long() -> None:
    def said(progress: Progress) -> str:
        plain: dict[str, Any] = {
            "what": progress.what,
            "done": progress.done,
            "total": progress.total,
            "rate_bytes_s": progress.rate_bytes_s,
            "left_s": progress.left_s,
        }
        return text._progress(plain)

    assert said(Progress("disk", 1, 100)) == "disk: 1 of 100 bytes"
    assert said(Progress("disk", 0, 7200 * MIB, MIB)) == (
        "disk: 0 of 7549747200 bytes, 1.0 MiB/s, 2:00:00 left"
    )
