# SPDX-License-Identifier: GPL-2.0-only
"""A daemon that is slow to start: what wakes it before it listens to its peer."""

from __future__ import annotations

import pytest

from colo_ebpf.control.decision.fencing import FenceWhen
from colo_ebpf.control.decision.snapshot import MS
from colo_ebpf.model import PlaneEvent, PlaneEventKind
from tests.sim.host import TIMING, Host
from tests.sim.test_pair import _check, _until_protected
from tests.sim.world import World

_SLOW_MS = 4 * TIMING.peer_timeout_ns // MS


@pytest.mark.parametrize("one_disk", [False, True], ids=["two disks", "one disk"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_peer_that_could_not_be_heard_yet_is_not_missed(name: str, one_disk: bool) -> None:
    """Else it would be bid for, and with one disk turned off."""
    world = World(7, fence=FenceWhen.BEFORE_SOLO, shares_disk=one_disk)
    for host in (Host(world, "a"), Host(world, "b")):
        host.start_daemon()
    assert _until_protected(world, 20_000, lambda: _check(world))
    generation, host = world.record.generation, world.hosts[name]
    host.kill_daemon()
    host.start_daemon(listens_after_ms=_SLOW_MS)
    world.run((_SLOW_MS - 10) * MS, lambda: _check(world))
    assert host.core is not None
    for kind in (PlaneEventKind.STORE_FULL, PlaneEventKind.MISSED_INPUT):
        event = PlaneEvent(kind, host.now_ns, host.plane.turn().epoch, "", 0, 0, 0, "")
        host.core.plane_event(event, host.now_ns)
        host.core.arbiter_looked_at(f"{kind}", host.now_ns)
    world.run(2_000 * MS, lambda: _check(world))
    assert not [line for line in world.log if "bidding" in line]
    assert world.record.generation == generation
    assert _until_protected(world, 20_000, lambda: _check(world))
