# SPDX-License-Identifier: GPL-2.0-only
"""The guest of a simulated pair ends its VM, or reboots it."""

from __future__ import annotations

import pytest

from colo_ebpf.control.admin import operations
from colo_ebpf.control.decision.actions import State
from colo_ebpf.control.decision.record import Kind, host_of
from colo_ebpf.errors import ControlError
from colo_ebpf.model import VmEventKind
from tests.sim.host import Host
from tests.sim.test_pair import _check, _until_protected
from tests.sim.test_planned import _pair, _rests, _switch_over
from tests.sim.world import MS, World


def _states(world: World) -> list[State]:
    return [h.core.decision.state for h in world.hosts.values() if h.core is not None]


def _power_off(world: World, *names: str) -> None:
    for name in names:
        vm = world.hosts[name].vm
        assert vm is not None
        vm.power_off()
        world.run(5 * MS, lambda: _check(world))


def _start(world: World, host: Host) -> None:
    assert host.core is not None
    operations.start(host.core, host.now_ns)
    world.wanted = True
    assert _until_protected(world, 20_000)
    assert host.core.requests.answer is not None
    assert host.core.requests.answer.sentence == f"{host.name} serves now"


@pytest.mark.parametrize("order", ["ab", "ba", "a"])
@pytest.mark.parametrize("seed", range(10))
def test_a_pair_that_is_powered_off_stays_off_until_it_is_started(seed: int, order: str) -> None:
    world = _pair(seed)
    a, b = world.hosts["a"], world.hosts["b"]
    _power_off(world, *order)
    _rests(world, 30)
    assert _states(world) == [State.OFF, State.OFF]
    assert (world.record.kind, world.record.owner) == (Kind.OFF, "a")
    assert (a.vm, b.vm) == (None, None)
    for host in (a, b):
        host.crash()
        host.boot()
    _rests(world, 10)
    assert _states(world) == [State.OFF, State.OFF]
    assert b.core is not None
    with pytest.raises(ControlError, match="its image is on a: say it there"):
        operations.start(b.core, b.now_ns)
    _start(world, a)


def test_a_replica_that_powers_off_alone_is_loaded_and_the_pair_goes_on() -> None:
    world = _pair(11)
    a, b = world.hosts["a"], world.hosts["b"]
    _power_off(world, "b")
    _rests(world, 3)
    assert _states(world) == [State.PRIMARY, State.SECONDARY]
    assert b.vm is not None
    assert not b.vm.off
    assert a.core is not None
    assert a.core.checkpoints.primary.settled_epoch


def test_a_survivor_that_was_powered_off_merges_its_disk_before_it_is_off() -> None:
    world = _pair(12)
    a, b = world.hosts["a"], world.hosts["b"]
    _power_off(world, "b")
    a.crash()
    _rests(world, 10)
    assert (world.record.kind, world.record.owner) == (Kind.OFF, "b")
    a.boot()
    _rests(world, 2)
    assert _states(world) == [State.OFF, State.OFF]
    _start(world, b)


def test_powered_off_while_its_daemon_is_away() -> None:
    world = _pair(13)
    a = world.hosts["a"]
    a.kill_daemon()
    _power_off(world, "a", "b")
    a.start_daemon()
    _rests(world, 3)
    assert _states(world) == [State.OFF, State.OFF]


def test_powered_off_while_the_arbiter_is_away() -> None:
    world = _pair(14)
    a = world.hosts["a"]
    world.arbiter_cut |= {"a", "b"}
    _power_off(world, "a", "b")
    _rests(world, 3)
    assert a.core is not None
    text = "the guest powered itself off: writing that down: trying again after the arbiter does"
    assert a.core.decision.sentence.startswith(text)
    world.arbiter_cut.clear()
    _rests(world, 3)
    assert _states(world) == [State.OFF, State.OFF]


def test_a_start_whose_outcome_nobody_said_is_looked_up() -> None:
    """Found by simulation: it had been written, and the daemon went on to say that it is off."""
    world = _pair(18)
    a = world.hosts["a"]
    _power_off(world, "a", "b")
    _rests(world, 3)
    world.random.random = lambda: 0.0  # type: ignore[method-assign]
    world.arbiter_cut |= {"a"}
    assert a.core is not None
    operations.start(a.core, a.now_ns)
    world.wanted = True
    _rests(world, 1)
    assert world.record.kind is Kind.CLAIMED
    world.arbiter_cut.clear()
    world.hosts["b"].kill_daemon()
    _rests(world, 10)
    assert a.core.decision.state is State.SOLO


def test_a_vm_alone_and_one_that_is_being_paired() -> None:
    world = _pair(15)
    a, b = world.hosts["a"], world.hosts["b"]
    b.crash()
    _rests(world, 3)
    b.boot()
    while _states(world) != [State.PAIRING, State.JOINING]:
        world.run(MS, lambda: _check(world))
    _power_off(world, "a")
    _rests(world, 5)
    assert _states(world) == [State.OFF, State.OFF]
    _start(world, a)


def test_after_a_switchover_the_image_is_on_the_other_host() -> None:
    world = _pair(16)
    a, b = world.hosts["a"], world.hosts["b"]
    assert _switch_over(world, a).done
    assert _until_protected(world, 20_000)
    _power_off(world, "b", "a")
    _rests(world, 3)
    assert (world.record.kind, world.record.owner) == (Kind.OFF, "b")
    _start(world, b)


def test_a_reboot_is_no_end_and_takes_a_checkpoint() -> None:
    world = _pair(17)
    world.bad_loads = 0
    a = world.hosts["a"]
    assert a.core is not None
    generation = world.record.generation
    assert a.vm is not None
    a.vm.reboot()
    _rests(world, 2)
    assert _states(world) == [State.PRIMARY, State.SECONDARY]
    assert world.record.generation == generation
    causes = {cause.value for cause in a.core.checkpoints.primary.by_cause}
    assert "guest-reset" in causes
    assert "the guest reboots" in [sentence for _, sentence in a.core.history]


def _ended_without_a_write(seed: int) -> tuple[Kind, str]:
    world = _pair(seed)
    a = world.hosts["a"]
    assert a.vm is not None
    a.vm.emit(VmEventKind.DISK_BAD, **{"node-name": "#block114", "type": "write"})
    _power_off(world, "a", "b")
    _rests(world, 20)
    return world.record.kind, host_of(world.record.owner)


def test_a_primary_whose_image_lacks_a_write_leaves_the_end_to_its_replica() -> None:
    """Where a load was under way the replica runs on instead: it is no replica that went off. In
    others (two in a hundred) it is broken in the middle of a load, and nobody may serve."""
    ends = [_ended_without_a_write(seed) for seed in range(40, 48)]
    assert {host for _, host in ends} == {"b"}
    assert (Kind.OFF, "b") in ends
