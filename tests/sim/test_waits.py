# SPDX-License-Identifier: GPL-2.0-only
"""How long clients of a pair wait, in simulated time, whatever the SVM is like.

Held answers leave within a bound, and a checkpoint does not beget the next: if nothing differs
their rate falls to none.
"""

from __future__ import annotations

import dataclasses
import os

import pytest

from colo_ebpf.control.checkpoint.pace import Wanted, Way
from colo_ebpf.control.checkpoint.primary import Cause
from tests.sim import host as hosts
from tests.sim.answers import Answers, Manners
from tests.sim.host import Host
from tests.sim.test_pair import _until_protected
from tests.sim.world import MS, World

_SEEDS = range(int(os.environ.get("COLO_WAITS", "3")))
_LONGEST_MS = hosts.TIMING.pacing.longest_wait_ns / MS
_CHECKPOINT_MS = 1_000  # and all that goes before it: beats, arming
_AT_REST = Cause.OPERATOR


def _pair(seed: int, manners: Manners, clients: int = 1) -> Answers:
    """A protected pair whose clients have begun."""
    world = World(seed, bad_loads=0.0)
    a, b = (Host(world, name) for name in "ab")
    a.start_daemon()
    b.start_daemon()
    assert _until_protected(world, 20_000)
    world.run(500 * MS, lambda: None)
    answers = Answers(world, a, b, manners, clients)
    answers.begin()
    return answers


def _run(answers: Answers, seconds: float) -> dict[Cause, int]:
    """Checkpoints taken meanwhile, by cause."""
    core = answers.primary.core
    assert core is not None
    before = dict(core.checkpoints.primary.by_cause)
    answers.world.run(int(seconds * 1000) * MS, lambda: None)
    after = core.checkpoints.primary.by_cause
    grown = {cause: count - before.get(cause, 0) for cause, count in after.items()}
    return {cause: count for cause, count in grown.items() if count}


def _checkpoint(answers: Answers) -> None:
    core = answers.primary.core
    assert core is not None
    core.checkpoints.primary.ask(_AT_REST, answers.primary.now_ns)
    core.cycle(answers.primary.now_ns)


def _longest_ms(answers: Answers) -> float:
    """So far, of those that wait still, too."""
    waiting = [answers.primary.now_ns - frame.at_ns for frame in answers.held]
    return max([*answers.waits_ns, *waiting], default=0) / MS


@pytest.mark.parametrize("seed", _SEEDS)
@pytest.mark.parametrize("clients", [1, 20])
def test_a_checkpoint_does_not_beget_the_next(seed: int, clients: int) -> None:
    """As found: after a load the SVM took longer for its first answer than an answer might wait."""
    answers = _pair(seed, Manners(), clients)
    _run(answers, 3)
    _checkpoint(answers)
    assert _run(answers, 30) == {_AT_REST: 1}
    assert answers.given > 1_000


@pytest.mark.parametrize("seed", _SEEDS)
def test_an_svm_that_is_slower_after_a_load_than_anyone_thought_is_learnt_of(seed: int) -> None:
    answers = _pair(seed, Manners(loaded_ms=(500, 900), slow_for_ms=900))
    _checkpoint(answers)
    _run(answers, 20)
    found = _run(answers, 20)
    assert found.get(Cause.HOLD_AGE, 0) == 0, "the rate of checkpoints falls to none"


@pytest.mark.parametrize("seed", _SEEDS)
@pytest.mark.parametrize("clients", [1, 20])
def test_every_answer_leaves_in_time(seed: int, clients: int) -> None:
    manners = Manners(differs=0.01, silent=0.002, in_vain=0.001, late_ms=(0.5, 40))
    answers = _pair(seed, manners, clients)
    for _ in range(20):
        _run(answers, 1)
        assert _longest_ms(answers) <= _LONGEST_MS + _CHECKPOINT_MS
    assert answers.given > 100


@pytest.mark.parametrize("seed", _SEEDS)
def test_an_svm_that_is_idle_and_silent_is_not_waited_for(seed: int) -> None:
    answers = _pair(seed, Manners(silent=0.01))
    _run(answers, 20)
    assert _longest_ms(answers) < 250, "beats are 50 ms here, and a load makes the SVM slow"


@pytest.mark.parametrize("seed", _SEEDS)
def test_one_that_works_in_vain_is_waited_for_a_few_times_as_long_as_is_usual(seed: int) -> None:
    answers = _pair(seed, Manners(late_ms=(2, 4), in_vain=0.01, loaded_ms=(2, 4)))
    _run(answers, 20)
    assert _longest_ms(answers) < 450, "beats are 50 ms here, and a few pass until it is told"


@pytest.mark.parametrize("seed", _SEEDS)
def test_bursts_of_lateness_cost_no_checkpoint(seed: int) -> None:
    """The SVM has no processor for a while, again and again, and comes along."""
    answers = _pair(seed, Manners(), clients=5)
    _run(answers, 1)  # a load makes it slow in another way
    taken = 0
    for n in range(20):
        answers.manners.starved = n % 4 == 0
        answers.manners.late_ms = (100, 300) if answers.manners.starved else (0.5, 5)
        taken += sum(_run(answers, 0.5).values())
    assert taken <= 1, "that the SVM is idle may be heard before what it said last"


def _dice(seed: int, wanted: Wanted, monkeypatch: pytest.MonkeyPatch, clients: int) -> Answers:
    pacing = dataclasses.replace(hosts.TIMING.pacing, wanted=wanted)
    timing = dataclasses.replace(hosts.TIMING, pacing=pacing)
    monkeypatch.setattr(hosts, "TIMING", timing)
    answers = _pair(seed, Manners(differs=1.0), clients)
    _run(answers, 30)
    return answers


@pytest.mark.parametrize("seed", _SEEDS)
@pytest.mark.parametrize("clients", [1, 20])
def test_dice_are_as_fast_as_the_better_way(
    seed: int, clients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = _dice(seed, Wanted.AUTO, monkeypatch, clients)
    assert auto.primary.core is not None
    assert auto.primary.core.checkpoints.waits.pace.way is Way.PERIODIC
    compare = _dice(seed, Wanted.COMPARE, monkeypatch, clients)
    periodic = _dice(seed, Wanted.PERIODIC, monkeypatch, clients)
    assert compare.given < periodic.given
    assert auto.given > 0.9 * periodic.given


@pytest.mark.parametrize("seed", _SEEDS)
def test_once_the_dice_are_put_away_the_pair_compares_again(seed: int) -> None:
    answers = _pair(seed, Manners(differs=1.0))
    _run(answers, 10)
    answers.manners.differs = 0.0
    _run(answers, 15)
    assert _run(answers, 10) == {}
    assert answers.primary.core is not None
    told = [sentence for _, sentence in answers.primary.core.history]
    assert any(one.startswith("output is compared again") for one in told)


@pytest.mark.parametrize("seed", _SEEDS)
@pytest.mark.parametrize("clients", [1, 20])
def test_it_compares_again_soon(seed: int, clients: int) -> None:
    """Whatever was before: what is the same does not cost a checkpoint each for long."""
    answers = _pair(seed, Manners(differs=1.0), clients)
    _run(answers, 30)
    answers.manners.differs = 0.0
    _run(answers, 5)
    assert answers.primary.core is not None
    assert answers.primary.core.checkpoints.waits.pace.way is Way.COMPARE
    assert _run(answers, 3) == {}


@pytest.mark.parametrize("seed", _SEEDS)
def test_without_the_secondarys_word_time_decides(seed: int) -> None:
    """Its daemon hangs: what waits leaves all the same, with a checkpoint or when the pair ends."""
    answers = _pair(seed, Manners(silent=0.01))
    _run(answers, 2)
    answers.secondary.kill_daemon()
    _run(answers, 8)
    assert _longest_ms(answers) <= _LONGEST_MS + 2 * _CHECKPOINT_MS
