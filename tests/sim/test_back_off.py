# SPDX-License-Identifier: GPL-2.0-only
"""How long a pair waits between attempts that fail, and what ends that."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from colo_ebpf.control.decision.actions import State
from tests.sim.host import Host
from tests.sim.test_pair import _until_protected
from tests.sim.world import MS, World

_RESTING = "alone, unprotected: resting after a pairing that failed: "


@pytest.fixture
def resting() -> World:
    """Host a serves; its attempts to pair have failed until it rests for long."""
    world = World(3)
    hosts = [Host(world, name) for name in "ab"]
    for host in hosts:
        host.start_daemon()
    assert _until_protected(world, 20_000, lambda: None)

    def fail() -> None:
        core, vm = hosts[0].core, hosts[1].vm
        if core is not None and core.decision.state is State.PAIRING and vm is not None:
            vm.die()

    assert hosts[1].vm is not None
    hosts[1].vm.die()
    for _ in range(2_000):
        began_ns = world.now_ns
        while _sentence(world).startswith(_RESTING) and world.now_ns - began_ns < 9_000 * MS:
            world.run(10 * MS, fail)
        if world.now_ns - began_ns >= 9_000 * MS:
            return world
        world.run(10 * MS, fail)
    pytest.fail("\n".join(world.log[-30:]))


def _sentence(world: World) -> str:
    core = world.hosts["a"].core
    return "" if core is None else core.decision.sentence


def _daemon_again(host: Host) -> None:
    host.kill_daemon()
    host.start_daemon()


def _host_again(host: Host) -> None:
    host.crash()
    host.boot()


def test_a_rest_is_long_after_many_failures(resting: World) -> None:
    assert not _until_protected(resting, 3_000, lambda: None)


@pytest.mark.parametrize("again", [_daemon_again, _host_again])
def test_it_begins_anew_when_the_peer_was_started_again(
    resting: World, again: Callable[[Host], None]
) -> None:
    again(resting.hosts["b"])
    assert _until_protected(resting, 3_000, lambda: None), "\n".join(resting.log[-30:])
