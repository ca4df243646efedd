# SPDX-License-Identifier: GPL-2.0-only
"""When a held frame costs a checkpoint: one that stays, not a queue that moves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf.control.overdue import Overdue

MS = 1_000_000
BEAT = 20 * MS
TIMEOUT = 60 * MS
LONGEST = 20 * TIMEOUT


def _held(at_ns: int) -> Overdue:
    overdue = Overdue(TIMEOUT, None)
    overdue.first(at_ns)
    return overdue


def _asked_at(overdue: Overdue, oldest_ns: int, now_ns: int, frames: int = 0) -> int:
    """Look when it says, at the same frame, until it asks."""
    while not overdue.look(oldest_ns, frames, now_ns):
        assert overdue.due_ns is not None and overdue.due_ns > now_ns
        now_ns = overdue.due_ns
    return now_ns


def test_a_single_frame_waits_for_the_timeout() -> None:
    assert _asked_at(_held(5), 5, 5) == 5 + TIMEOUT


def test_while_the_oldest_frame_keeps_changing_nobody_asks() -> None:
    overdue = _held(0)
    for now in range(100 * MS, 2000 * MS, BEAT):
        assert not overdue.look(max(0, now - TIMEOUT - BEAT), 0, now)


def test_a_frame_that_stays_the_oldest_is_asked_for() -> None:
    overdue = _held(0)
    for now in range(0, 300 * MS, BEAT):
        overdue.look(max(0, now - 2 * TIMEOUT), 0, now)
    stuck, now = 300 * MS - 2 * TIMEOUT, 300 * MS
    assert _asked_at(overdue, stuck, now) == now + TIMEOUT


def test_an_svm_that_is_far_behind_may_rest_for_longer() -> None:
    overdue = _held(0)
    overdue.look(100 * MS, 0, 500 * MS)
    assert _asked_at(overdue, 100 * MS, 520 * MS) == 700 * MS


def test_an_svm_that_owes_thousands_may_send_the_oldest_last() -> None:
    """As found: 3,822 answers waited, and it had no processor for 61 ms."""
    overdue = _held(0)
    overdue.look(16 * MS, 3822, 32 * MS)
    assert _asked_at(overdue, 16 * MS, 77 * MS, 3822) > 150 * MS
    assert _asked_at(_held(5), 5, 5, 100) == 5 + TIMEOUT, "as a few do not"


def test_a_queue_that_grows_and_grows_ends() -> None:
    overdue = _held(0)
    assert not overdue.look(1, 0, LONGEST)
    assert overdue.look(2, 0, 2 + LONGEST)


def test_after_asking_it_waits_as_long_again() -> None:
    overdue = _held(0)
    assert overdue.look(0, 0, TIMEOUT)
    assert overdue.due_ns == 2 * TIMEOUT


def test_a_daemon_that_starts_looks_for_a_while_first() -> None:
    overdue = Overdue(TIMEOUT, 1000 * MS)
    assert not overdue.look(900 * MS, 0, 1000 * MS)
    assert overdue.due_ns == 1050 * MS


_STEP = st.tuples(st.integers(0, 2 * LONGEST), st.integers(0, 3 * BEAT), st.integers(0, 1 << 15))


@given(st.lists(_STEP, max_size=40))
def test_never_before_the_timeout_and_never_after_the_longest(
    steps: list[tuple[int, int, int]],
) -> None:
    overdue, now = _held(0), 0
    for age, later, frames in steps:
        now += later
        oldest = max(0, now - age)
        asked = overdue.look(oldest, frames, now)
        assert not asked or now - oldest >= TIMEOUT
        assert asked or now - oldest < LONGEST
        assert overdue.due_ns is not None and overdue.due_ns > now
