# SPDX-License-Identifier: GPL-2.0-only
"""When a held answer costs a checkpoint: not while the SVM is on its way, and at once when it is
not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf.control.checkpoint.hold_timer import IDLE, IN_VAIN, OVERTAKEN, Patience, Told
from colo_ebpf.control.checkpoint.lateness import Yardstick
from colo_ebpf.model import Lateness, Waiting

MS = 1_000_000
BEAT = 20 * MS
TIMEOUT = 60 * MS
WHILE_IT_WORKS = 2_000 * MS
LONGEST = 20 * TIMEOUT
NOBODY = Told()
ASKED_BY = 20 * MS  # at the latest, as long as nothing is doubled
LATER = 10_000 * MS  # than the load the test is about
DELAYED_ACK = 200 * MS


def _held(at_ns: int) -> Patience:
    patience = Patience(TIMEOUT, WHILE_IT_WORKS, None)
    patience.first(at_ns)
    return patience


def _waiting(oldest_ns: int, frames: int = 1, compared: int = 0) -> Waiting:
    return Waiting(answer_ns=oldest_ns, frames=frames, compared=compared)


def _asked_at(patience: Patience, oldest_ns: int, now_ns: int, frames: int = 0) -> int:
    """Look when it says, at the same frame, until it asks; the secondary does not answer."""
    while not patience.look(_waiting(oldest_ns, frames), NOBODY, now_ns):
        assert patience.due_ns is not None and patience.due_ns > now_ns
        now_ns = patience.due_ns
    return now_ns


def _late(bucket: int, count: int = 100) -> tuple[int, ...]:
    return tuple(count if n == bucket else 0 for n in range(32))


# -- the secondary answers -----------------------------------------------------------------------


def _ask(patience: Patience, oldest_ns: int) -> int:
    """Until the secondary is asked about it; returns when."""
    now_ns = oldest_ns
    assert not patience.look(_waiting(oldest_ns), NOBODY, now_ns)
    while patience.question != oldest_ns:
        assert patience.due_ns is not None and patience.due_ns > now_ns
        now_ns = patience.due_ns
        assert not patience.look(_waiting(oldest_ns), NOBODY, now_ns)
    return now_ns


def test_the_secondary_is_asked_about_an_answer_that_waits_for_a_moment() -> None:
    patience = _held(LATER)
    assert 0 < _ask(patience, LATER) - LATER <= ASKED_BY
    assert patience.worth_ns == TIMEOUT


def test_an_svm_that_is_idle_costs_a_checkpoint_at_once() -> None:
    patience = _held(LATER)
    now_ns = _ask(patience, LATER) + 12 * MS
    idle = Told(watches=LATER, spent=LATER, idle=True)
    assert patience.look(_waiting(LATER), idle, now_ns) == IDLE


def test_so_does_one_that_has_worked_in_vain() -> None:
    patience = _held(LATER)
    now_ns = _ask(patience, LATER) + 12 * MS
    assert patience.look(_waiting(LATER), Told(LATER, LATER), now_ns) == IN_VAIN


def test_an_svm_that_works_is_waited_for() -> None:
    patience = _held(LATER)
    now_ns, watched = _ask(patience, LATER), Told(watches=LATER)
    while now_ns < LATER + WHILE_IT_WORKS:
        assert not patience.look(_waiting(LATER), watched, now_ns)
        now_ns += BEAT
    assert patience.look(_waiting(LATER), watched, now_ns) == "the SVM is 2000 ms late"


@pytest.mark.parametrize(("frames", "others"), [(1, 32), (8, 32), (20, 80)])
def test_an_svm_that_gives_all_other_answers_will_not_give_this_one(
    frames: int, others: int
) -> None:
    """As found: clients of a database waited for each other's locks in another order there."""
    patience = _held(LATER)
    now_ns, watched = _ask(patience, LATER), Told(watches=LATER)
    assert not patience.look(_waiting(LATER, frames, others - 1), watched, now_ns + BEAT)
    why = patience.look(_waiting(LATER, frames, others), watched, now_ns + 2 * BEAT)
    assert why == OVERTAKEN


def test_what_was_said_of_another_answer_says_nothing() -> None:
    patience = _held(LATER)
    _ask(patience, LATER)
    newer = LATER + 5 * MS
    told = Told(watches=LATER, spent=LATER)
    assert not patience.look(_waiting(newer), told, newer + ASKED_BY + MS)
    assert patience.question == newer


def test_what_was_said_of_an_idle_svm_holds_for_what_it_had_the_input_of() -> None:
    """As found: all clients of a database wait for each other there; the oldest of them came later
    than the answer that the secondary was asked about."""
    patience = _held(LATER)
    now_ns = _ask(patience, LATER) + 300 * MS
    idle = Told(watches=LATER, spent=LATER, idle=True)
    assert patience.look(_waiting(now_ns - 20 * MS), idle, now_ns) == IDLE


def test_and_not_for_what_came_since() -> None:
    patience = _held(LATER)
    now_ns = _ask(patience, LATER) + 300 * MS
    idle, newer = Told(watches=LATER, spent=LATER, idle=True), now_ns - 19 * MS
    for late_ms in range(0, 40, 5):
        assert not patience.look(_waiting(newer), idle, now_ns + late_ms * MS)
    assert patience.question == newer


def test_one_that_worked_in_vain_may_say_the_next() -> None:
    patience = _held(LATER)
    now_ns = _ask(patience, LATER) + 300 * MS
    assert not patience.look(_waiting(now_ns - 30 * MS), Told(LATER, LATER), now_ns)


def test_it_may_work_for_three_times_as_long_as_is_usual() -> None:
    patience = _held(LATER)
    patience.yardstick.read(Lateness(usual=_late(17), loaded=_late(0, 0)))
    usual_ns = 1024 << 17
    assert patience.may_wait_ns(LATER) == 3 * usual_ns


def test_but_never_for_longer_than_the_configuration_has_it() -> None:
    patience = _held(LATER)
    patience.yardstick.read(Lateness(usual=_late(24), loaded=_late(0, 0)))
    assert patience.may_wait_ns(LATER) == WHILE_IT_WORKS


def test_what_is_usual_follows_the_last_few_hundred() -> None:
    patience, slow, quick = _held(LATER), _late(20, 10_000), _late(5, 1_000)
    patience.yardstick.read(Lateness(usual=slow, loaded=_late(0, 0)))
    both = tuple(a + b for a, b in zip(slow, quick, strict=True))
    patience.yardstick.read(Lateness(usual=both, loaded=_late(0, 0)))
    assert patience.may_wait_ns(LATER) == TIMEOUT


def test_a_few_late_answers_are_no_yardstick() -> None:
    yardstick = Yardstick()
    yardstick.read(Lateness(usual=_late(24, 3), loaded=_late(24, 3)))
    assert (yardstick.usual_ns(), yardstick.loaded_ns()) == (None, None)


def test_soon_after_a_load_the_svm_has_more_time() -> None:
    patience = _held(LATER)
    patience.loaded(LATER)
    assert patience.may_wait_ns(LATER + 100 * MS) == 300 * MS
    assert patience.may_wait_ns(LATER + 600 * MS) == TIMEOUT
    patience.yardstick.read(Lateness(usual=_late(0), loaded=_late(16)))
    assert patience.may_wait_ns(LATER + 100 * MS) == 3 * (1024 << 16)
    patience.yardstick.read(Lateness(usual=_late(0), loaded=_late(8, 5000)))
    assert patience.may_wait_ns(LATER + 100 * MS) == TIMEOUT


# -- a checkpoint that begets the next -------------------------------------------------------------


def _age_checkpoint(patience: Patience, at_ns: int, compared: int) -> None:
    """An answer that came at that time costs one."""
    patience.first(at_ns)
    told = Told(watches=at_ns, spent=at_ns)
    waiting = _waiting(at_ns, compared=compared)
    now_ns = at_ns
    while not patience.look(waiting, told, now_ns):
        assert patience.due_ns is not None
        now_ns = patience.due_ns
    patience.loaded(now_ns)


def test_one_after_which_the_svm_said_nothing_doubles_the_patience() -> None:
    patience = _held(LATER)
    for n in range(4):
        assert patience.doubled == max(0, n - 1)
        _age_checkpoint(patience, LATER + n * 500 * MS, compared=7)
    assert patience.may_wait_ns(LATER + 600 * 1000 * MS) == TIMEOUT << 3


def test_answers_of_the_svm_bring_it_back() -> None:
    patience = _held(LATER)
    for n in range(4):
        _age_checkpoint(patience, LATER + n * 500 * MS, compared=7)
    for n in range(4, 7):
        _age_checkpoint(patience, LATER + n * 500 * MS, compared=n)
    assert patience.doubled == 0


def test_so_does_time() -> None:
    patience = _held(LATER)
    for n in range(3):
        _age_checkpoint(patience, LATER + n * 500 * MS, compared=7)
    assert patience.doubled
    _age_checkpoint(patience, LATER + 60_000 * MS, compared=7)
    assert not patience.doubled


# -- what comes by a timer -------------------------------------------------------------------------


def test_an_ack_that_the_svm_delays_costs_nothing() -> None:
    patience, waiting = _held(LATER), Waiting(timer_ns=LATER, frames=1)
    idle = Told(watches=LATER, spent=LATER)
    assert not patience.look(waiting, idle, LATER + DELAYED_ACK)
    assert patience.question == 0
    due_ns = patience.due_ns
    assert due_ns is not None and LATER + DELAYED_ACK < due_ns <= LATER + 300 * MS
    assert patience.look(waiting, idle, due_ns) == "an ACK of the SVM is missing"


def test_while_the_secondarys_daemon_is_away_nothing_is_doubled() -> None:
    """Its VM's turns are nobody's: each answer needs a checkpoint until it is back."""
    patience, at_ns = _held(LATER), LATER
    for _ in range(10):
        patience.first(at_ns)
        patience.loaded(at_ns)
        now_ns = at_ns
        while not patience.look(_waiting(at_ns), None, now_ns):
            assert patience.due_ns is not None
            now_ns = patience.due_ns
        assert now_ns == at_ns + TIMEOUT
        at_ns = now_ns + 20 * MS


# -- by time alone ---------------------------------------------------------------------------------


def test_a_single_frame_waits_for_the_timeout() -> None:
    assert _asked_at(_held(LATER), LATER, LATER) == LATER + TIMEOUT


def test_while_the_oldest_frame_keeps_changing_nobody_asks() -> None:
    patience = _held(LATER)
    for now in range(LATER + 100 * MS, LATER + 2000 * MS, BEAT):
        assert not patience.look(_waiting(now - TIMEOUT - BEAT), NOBODY, now)


def test_a_frame_that_stays_the_oldest_is_asked_for() -> None:
    patience = _held(LATER)
    for now in range(LATER, LATER + 300 * MS, BEAT):
        patience.look(_waiting(now - 2 * TIMEOUT, compared=now), NOBODY, now)
    stuck, now = LATER + 300 * MS - 2 * TIMEOUT, LATER + 300 * MS
    assert _asked_at(patience, stuck, now) == now + TIMEOUT


def test_an_svm_that_is_far_behind_may_rest_for_longer() -> None:
    patience = _held(LATER)
    patience.look(_waiting(LATER + 100 * MS), NOBODY, LATER + 500 * MS)
    assert _asked_at(patience, LATER + 100 * MS, LATER + 520 * MS) == LATER + 700 * MS


def test_an_svm_that_owes_thousands_may_send_the_oldest_last() -> None:
    """As found: 3,822 answers waited, and it had no processor for 61 ms."""
    patience = _held(LATER)
    patience.look(_waiting(LATER + 16 * MS, 3822), NOBODY, LATER + 32 * MS)
    assert _asked_at(patience, LATER + 16 * MS, LATER + 77 * MS, 3822) > LATER + 150 * MS
    assert _asked_at(_held(LATER), LATER, LATER, 100) == LATER + TIMEOUT, "as a few do not"


def test_a_queue_that_grows_and_grows_ends() -> None:
    patience = _held(LATER)
    assert not patience.look(_waiting(LATER + 1), NOBODY, LATER + LONGEST)
    assert patience.look(_waiting(LATER + 2), NOBODY, LATER + 2 + LONGEST)


def test_after_asking_it_waits_as_long_again() -> None:
    patience = _held(LATER)
    assert patience.look(_waiting(LATER), NOBODY, LATER + TIMEOUT)
    assert patience.due_ns == LATER + 2 * TIMEOUT


_STEP = st.tuples(
    st.integers(0, 2 * LONGEST), st.integers(0, 3 * BEAT), st.integers(0, 1 << 15), st.booleans()
)


@given(st.lists(_STEP, max_size=40))
def test_never_at_once_and_never_after_the_longest(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    """Whatever the secondary says: what is asked for has waited, and nothing waits for ever."""
    patience, now = _held(LATER), LATER
    for age, later, frames, watched in steps:
        now += later
        oldest = max(LATER, now - age)
        told = Told(watches=patience.question) if watched else NOBODY
        asked = patience.look(_waiting(oldest, frames), told, now)
        assert not asked or now - oldest >= TIMEOUT
        assert asked or now - oldest < max(LONGEST, WHILE_IT_WORKS)
        assert patience.due_ns is not None and patience.due_ns > now
