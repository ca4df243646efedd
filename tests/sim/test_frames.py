# SPDX-License-Identifier: GPL-2.0-only
"""A link that carries heartbeats and no frames, one way or both: it is a cut link."""

from __future__ import annotations

import pytest

from colo_ebpf.control.decision.actions import State
from colo_ebpf.control.decision.record import Kind, Record, host_of
from colo_ebpf.errors import ArbiterError
from tests.sim.host import Host
from tests.sim.test_pair import _check, _until_protected
from tests.sim.world import MS, TIMING, World

_SAYS = "the link carries heartbeats but no frames (firewall?)"


def _pair(seed: int) -> World:
    world = World(seed, bad_loads=0.0)
    for host in [Host(world, name) for name in "ab"]:
        host.start_daemon()
    assert _until_protected(world, 20_000, lambda: _check(world))
    world.run(500 * MS, lambda: _check(world))
    return world


def _state(world: World, name: str) -> State:
    core = world.hosts[name].core
    assert core is not None
    return core.decision.state


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("silent", ["a", "b", "ab"])
def test_the_primary_goes_on_alone_and_says_why(silent: str, seed: int) -> None:
    world = _pair(seed)
    world.frames_cut |= set(silent)
    world.run(4 * TIMING.peer_timeout_ns, lambda: _check(world))
    assert world.record.kind is Kind.ACTIVE
    assert host_of(world.record.owner) == "a", "it was not to change hosts"
    assert any(f"a: bidding to go on alone: {_SAYS}" in line for line in world.log)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("silent", ["a", "b"])
def test_no_pair_is_made_before_frames_pass_both_ways(silent: str, seed: int) -> None:
    world = _pair(seed)
    world.frames_cut |= set(silent)
    assert not _until_protected_again(world, 8_000)
    assert _state(world, "a") is State.PAIRING
    core = world.hosts["a"].core
    assert core is not None
    assert "frame" in core.decision.sentence
    copied = [line for line in world.log if "copying the disk" in line]
    assert len(copied) == 1, "nothing is copied for a pair that cannot be"
    world.frames_cut.clear()
    assert _until_protected(world, 10_000, lambda: _check(world)), "\n".join(world.log[-30:])


def _until_protected_again(world: World, limit_ms: int) -> bool:
    world.run(4 * TIMING.peer_timeout_ns, lambda: _check(world))
    return _until_protected(world, limit_ms, lambda: _check(world))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("silent", ["a", "b"])
def test_a_primary_that_cannot_bid_is_followed_by_the_secondary(
    silent: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = _pair(seed)

    def nothing_is_written(old: Record, new: Record) -> Record:
        raise ArbiterError("the arbiter does not answer")

    monkeypatch.setattr(world.hosts["a"], "_swap", nothing_is_written)
    world.frames_cut |= set(silent)
    world.run(12 * TIMING.peer_timeout_ns, lambda: _check(world))
    assert (world.record.kind, host_of(world.record.owner)) == (Kind.ACTIVE, "b")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_daemon_that_hangs_or_restarts_is_not_taken_for_a_firewall(name: str, seed: int) -> None:
    world = _pair(seed)
    host = world.hosts[name]
    for _ in range(3):
        host.pause()
        world.run(TIMING.peer_timeout_ns // 2, lambda: _check(world))
        host.resume()
        world.run(2_000 * MS, lambda: _check(world))
        host.kill_daemon()
        world.run(300 * MS, lambda: _check(world))
        host.start_daemon()
        world.run(2_000 * MS, lambda: _check(world))
    assert not [line for line in world.log if _SAYS in line]
    assert world.record.generation == 4, "the pair has lasted"
