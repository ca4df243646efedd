# SPDX-License-Identifier: GPL-2.0-only
"""Both sides are lost at once: a power cut. The image that has everything starts the VM again,
on whichever host that is by then."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from colo_ebpf.control.decision.record import host_of
from tests.sim.host import Host
from tests.sim.test_pair import _check, _until_protected
from tests.sim.world import World


def _host_again(host: Host) -> None:
    host.crash()
    host.boot()


def _vm(host: Host) -> None:
    assert host.vm is not None
    host.vm.die()


def _daemon_and_vm(host: Host) -> None:
    host.kill_daemon()
    _vm(host)
    host.start_daemon()


def _heals(world: World) -> None:
    healed = _until_protected(world, 20_000, lambda: _check(world))
    assert healed, "\n".join(world.log[-30:])


@pytest.mark.parametrize("both", [_host_again, _vm, _daemon_and_vm])
@pytest.mark.parametrize("takeovers", [0, 1, 2])
@pytest.mark.parametrize("seed", range(3, 8))  # no load is under way when a host is lost
def test_the_vm_starts_from_the_image_that_has_everything(
    seed: int, takeovers: int, both: Callable[[Host], None]
) -> None:
    world = World(seed)
    hosts = [Host(world, name) for name in "ab"]
    for host in hosts:
        host.start_daemon()
    _heals(world)
    for _ in range(takeovers):
        _host_again(world.hosts[host_of(world.record.owner)])
        _heals(world)
    whole = world.record.image
    assert whole == "ab"[takeovers % 2]
    for host in hosts:
        both(host)
    _heals(world)
    assert host_of(world.record.owner) == whole, "its image has everything, the other has not"
