# SPDX-License-Identifier: GPL-2.0-only
"""Planned operation of a simulated pair that is well, and of one that is not."""

from __future__ import annotations

import pytest

from colo_ebpf.control.admin import operations
from colo_ebpf.control.checkpoint.primary import Cause
from colo_ebpf.control.decision.actions import State
from colo_ebpf.control.decision.record import Kind, host_of
from colo_ebpf.control.peer.state import Answer
from colo_ebpf.errors import ControlError
from tests.sim.host import Host
from tests.sim.test_pair import _check, _until_protected
from tests.sim.world import MS, World

_LIMIT_MS = 20_000


def _pair(seed: int) -> World:
    """A protected pair; a is the primary."""
    world = World(seed)
    for host in [Host(world, name) for name in "ab"]:
        host.start_daemon()
    assert _until_protected(world, _LIMIT_MS)
    world.run(200 * MS, lambda: _check(world))  # each has heard that the other is
    return world


def _switch_over(world: World, host: Host) -> Answer:
    """Asked on `host`; what its daemon says in the end."""
    core = host.core
    assert core is not None
    token = operations.switch_over(core, host.now_ns)
    for _ in range(_LIMIT_MS // 10):
        world.run(10 * MS, lambda: _check(world))
        answer = core.requests.answer
        if answer is not None and answer.token == token:
            return answer
    raise AssertionError("a switchover is not answered")


@pytest.mark.parametrize("asked", ["a", "b"])
@pytest.mark.parametrize("seed", range(20))
def test_the_hosts_change_places_and_back(seed: int, asked: str) -> None:
    world = _pair(seed)
    for primary in "ba":
        lost = world.lost_vms
        answer = _switch_over(world, world.hosts[asked])
        if world.lost_vms > lost:
            return  # the last load itself failed: nobody can hold on to that
        assert (answer.done, answer.sentence) == (True, f"{primary} serves now")
        assert 0 < answer.outage_ns < _LIMIT_MS * MS
        assert _until_protected(world, _LIMIT_MS)
        world.run(200 * MS, lambda: _check(world))
        assert host_of(world.record.owner) == primary


@pytest.mark.parametrize("asked", ["a", "b"])
def test_an_operator_is_asked_about_what_would_happen(asked: str) -> None:
    host = _pair(1).hosts[asked]
    assert host.core is not None
    question = operations.switchover_question(host.core, host.now_ns)
    assert question == "Let the VM on b take over, and make a new replica on a?"
    assert host.core.requests.request is None


def test_an_operator_is_not_asked_about_what_cannot_be() -> None:
    world = _pair(1)
    a = world.hosts["a"]
    world.hosts["b"].crash()
    world.run(_LIMIT_MS * MS, lambda: None)
    assert a.core is not None
    with pytest.raises(ControlError, match="no switchover: there is no protected pair"):
        operations.switchover_question(a.core, a.now_ns)


def test_busy_with_checkpoints_it_still_finds_its_moment() -> None:
    world = _pair(3)
    a = world.hosts["a"]
    assert a.core is not None
    token = operations.switch_over(a.core, a.now_ns)
    for _ in range(2_000):
        a.core.checkpoints.primary.ask(Cause.MISMATCH, a.now_ns)
        world.run(MS, lambda: _check(world))
    answer = a.core.requests.answer
    assert answer is not None
    assert (answer.token, answer.done) == (token, True)


@pytest.mark.parametrize("asked", ["a", "b"])
def test_an_arbiter_that_is_away_leaves_the_pair_as_it_is(asked: str) -> None:
    world = _pair(4)
    world.arbiter_cut |= {"a", "b"}
    answer = _switch_over(world, world.hosts[asked])
    assert not answer.done
    assert "the arbiter does not answer" in answer.sentence
    world.arbiter_cut.clear()
    assert _until_protected(world, _LIMIT_MS)


def test_a_secondary_that_dies_first_ends_it() -> None:
    world = _pair(5)
    a, b = world.hosts["a"], world.hosts["b"]
    assert a.core is not None
    operations.switch_over(a.core, a.now_ns)
    b.crash()
    world.run(3_000 * MS, lambda: _check(world))
    answer = a.core.requests.answer
    assert answer is not None
    assert not answer.done
    assert answer.sentence.startswith("no switchover: ")
    assert a.core.decision.state is State.SOLO


def test_without_a_pair_nothing_is_begun() -> None:
    world = _pair(6)
    a, b = world.hosts["a"], world.hosts["b"]
    assert a.core is not None
    b.crash()
    world.run(3_000 * MS, lambda: _check(world))
    with pytest.raises(ControlError, match="there is no protected pair: alone, unprotected"):
        operations.switch_over(a.core, a.now_ns)


# --- paused -----------------------------------------------------------------------------------


def _rests(world: World, seconds: int) -> None:
    world.run(seconds * 1_000 * MS, lambda: _check(world))


@pytest.mark.parametrize("said_on", ["a", "b"])
def test_while_paused_the_vm_stays_until_resume(said_on: str) -> None:
    world = _pair(7)
    a, b = world.hosts["a"], world.hosts["b"]
    said = world.hosts[said_on].core
    assert said is not None
    operations.pause(said, True, world.hosts[said_on].now_ns)
    _rests(world, 1)
    a.crash()
    b.kill_daemon()
    b.start_daemon()
    _rests(world, 5)
    assert b.core is not None
    assert (b.core.decision.state, world.record.kind) == (State.SECONDARY, Kind.PAIRED)
    assert b.core.decision.sentence.startswith("paused by the operator: not taking over although")
    operations.pause(b.core, False, b.now_ns)
    _rests(world, 2)
    assert b.core.decision.state is State.SOLO
    a.boot()
    assert _until_protected(world, _LIMIT_MS)
    assert a.core is not None
    assert not a.core.pause.on, "it had kept that it is paused, and was told"


def test_while_paused_the_primary_still_goes_on_alone_and_makes_no_pair() -> None:
    world = _pair(8)
    a, b = world.hosts["a"], world.hosts["b"]
    assert a.core is not None
    operations.pause(a.core, True, a.now_ns)
    _rests(world, 1)
    b.crash()
    _rests(world, 2)
    b.boot()
    _rests(world, 5)
    assert a.core.decision.state is State.SOLO
    assert a.core.decision.sentence == "alone, unprotected: paused by the operator"
    assert b.core is not None
    operations.pause(b.core, False, b.now_ns)
    assert _until_protected(world, _LIMIT_MS)


def test_while_paused_it_can_be_forced() -> None:
    world = _pair(9)
    a, b = world.hosts["a"], world.hosts["b"]
    assert b.core is not None
    operations.pause(b.core, True, b.now_ns)
    _rests(world, 1)
    with pytest.raises(ControlError, match="a is heard and its VM is well"):
        operations.fail_over(b.core, world.record.generation, b.now_ns)
    assert a.vm is not None
    a.vm.die()
    _rests(world, 3)
    assert a.core is not None
    assert a.core.decision.sentence.startswith("paused by the operator: not conceding to b")
    operations.fail_over(b.core, world.record.generation, b.now_ns)
    _rests(world, 3)
    assert b.core.decision.state is State.SOLO
    assert b.core.requests.answer is not None
    assert b.core.requests.answer.sentence == "b serves now"


def test_a_primary_that_was_a_replica_once_is_not_unfit_for_what_failed_then() -> None:
    """Found by simulation: its new daemon reads the record only when the pair has ended."""
    world = _pair(10)
    a, b = world.hosts["a"], world.hosts["b"]
    assert _switch_over(world, a).done
    assert _until_protected(world, _LIMIT_MS)
    assert b.vm is not None
    b.vm.ever_sick = True
    world.arbiter_cut |= {"b"}
    b.kill_daemon()
    a.crash()
    b.start_daemon()
    a.boot()
    _rests(world, 2)
    assert (world.record.kind, world.record.owner) == (Kind.CLAIMED, b.vm.instance)
    world.arbiter_cut.clear()
    _rests(world, 2)
    assert _until_protected(world, _LIMIT_MS)
