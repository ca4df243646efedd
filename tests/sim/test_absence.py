# SPDX-License-Identifier: GPL-2.0-only
"""A daemon that did not run for a while: its peer is not missed for that time, nor for longer."""

from __future__ import annotations

import pytest

from colo_ebpf.control.decision.snapshot import MS
from colo_ebpf.control.peer.state import Path
from colo_ebpf.model import Mode
from tests.sim.host import TIMING, Host
from tests.sim.test_pair import _check, _until_protected
from tests.sim.world import World

_TIMEOUT_MS = TIMING.peer_timeout_ns // MS


@pytest.fixture
def world() -> World:
    """A protected pair; the primary is a."""
    world = World(3, bad_loads=0.0)
    for host in [Host(world, name) for name in "ab"]:
        host.start_daemon()
    assert _until_protected(world, 20_000, lambda: _check(world))
    return world


def _run(world: World, ms: int) -> None:
    world.run(ms * MS, lambda: _check(world))


@pytest.mark.parametrize("first", ["a", "b"])
@pytest.mark.parametrize("ms", [_TIMEOUT_MS, 2 * _TIMEOUT_MS, 20 * _TIMEOUT_MS])
def test_hosts_that_stand_together_go_on_as_a_pair(world: World, ms: int, first: str) -> None:
    """As two guests of one machine do that has no time for them."""
    generation = world.record.generation
    a, b = world.hosts[first], world.hosts["b" if first == "a" else "a"]
    for host in (a, b):
        host.pause()
    _run(world, ms)
    a.resume()
    _run(world, 40)
    b.resume()
    _run(world, 3_000)
    assert not [line for line in world.log if "bidding" in line]
    assert world.record.generation == generation
    assert _until_protected(world, 20_000, lambda: _check(world))


def _serves(host: Host) -> bool:
    return host.plane.mode() is Mode.SOLO


def test_what_died_meanwhile_is_missed_a_timeout_later(world: World) -> None:
    b = world.hosts["b"]
    b.pause()
    world.cut = {("a", path) for path in Path}
    world.hosts["a"].crash()
    _run(world, 20 * _TIMEOUT_MS)
    b.resume()
    _run(world, 40)  # what a heartbeat needs
    assert not [line for line in world.log if "bidding" in line]
    _run(world, 3 * _TIMEOUT_MS)
    assert _serves(b)


def test_who_is_stopped_again_and_again_still_takes_over(world: World) -> None:
    b = world.hosts["b"]
    world.hosts["a"].crash()
    for _ in range(60):
        b.pause()
        _run(world, _TIMEOUT_MS)
        b.resume()
        _run(world, _TIMEOUT_MS // 4)
        if _serves(b):
            break
    assert _serves(b)
