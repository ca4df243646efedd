# SPDX-License-Identifier: GPL-2.0-only
"""What a pair does when a disk fails on one side of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from colo_ebpf.control.decision.record import Kind, host_of
from colo_ebpf.control.decision.snapshot import FenceWhen
from colo_ebpf.model import VmEventKind
from tests.sim.host import Host
from tests.sim.test_pair import _until_protected
from tests.sim.vm import ToyVm
from tests.sim.world import MS, World


@pytest.fixture
def world() -> World:
    """A protected pair, a the primary. No load goes wrong: that is a fault of its own."""
    world = World(4, bad_loads=0.0)
    for host in [Host(world, name) for name in "ab"]:
        host.start_daemon()
    assert _until_protected(world, 20_000)
    return world


def _vm(world: World, host: str) -> ToyVm:
    vm = world.hosts[host].vm
    assert vm is not None
    return vm


def _until(world: World, condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        world.run(100 * MS, lambda: None)
    pytest.fail("\n".join(world.log[-30:]))


def test_a_write_that_failed_on_the_replica_is_mended_by_a_checkpoint(world: World) -> None:
    generation, vm, loads = world.record.generation, _vm(world, "b"), _vm(world, "b").loads()
    vm.fail_disk()
    core = world.hosts["b"].core
    assert core is not None
    assert core.unfit()
    _until(world, lambda: not core.unfit())
    assert vm.loads() > loads
    assert world.record.generation == generation, "the pair lasted"


def test_while_it_is_not_mended_the_replica_does_not_bid(world: World) -> None:
    _vm(world, "b").fail_disk()
    world.hosts["a"].crash()
    world.run(3_000 * MS, lambda: None)
    assert world.record.kind is Kind.PAIRED
    core = world.hosts["b"].core
    assert core is not None
    assert "not bidding" in core.decision.sentence


def test_what_fails_after_each_checkpoint_ends_the_pair(world: World) -> None:
    vm, failed_at = _vm(world, "b"), -1

    def fails_again() -> bool:
        nonlocal failed_at
        if vm.loads() > failed_at and vm.acts and not vm.stopped:
            failed_at = vm.loads()
            vm.fail_disk()
        return not vm.acts

    _until(world, fails_again)
    assert host_of(world.record.owner) == "a"


def test_a_write_that_only_the_peers_image_took_makes_the_peer_take_over(world: World) -> None:
    _vm(world, "a").emit(VmEventKind.DISK_BAD, **{"node-name": "#block114", "type": "write"})
    _until(world, lambda: host_of(world.record.owner) == "b")


def test_a_write_that_the_peers_image_refused_leaves_the_primary_alone(world: World) -> None:
    generation = world.record.generation
    _vm(world, "a").emit(VmEventKind.DISK_BAD, **{"node-name": "nbd1", "type": "write"})
    _until(world, lambda: world.record.generation > generation)
    assert host_of(world.record.owner) == "a"


def test_what_qemu_says_late_of_the_last_secondary_is_not_held_against_the_next(
    world: World,
) -> None:
    """As found: QEMU says it once a second, and the next pair had begun within that."""
    vm, generation = _vm(world, "a"), world.record.generation

    def refused() -> None:
        vm.emit(VmEventKind.DISK_BAD, **{"node-name": "nbd1", "type": "write"})

    refused()
    world.after(1_000 * MS, refused)
    assert _until_protected(world, 20_000)
    world.run(3_000 * MS, lambda: None)
    core = world.hosts["a"].core
    assert core is not None
    assert world.record.generation == generation + 3, "claimed, active, paired: once"
    assert core.back_off.total == 0


def test_what_the_images_refused_a_qemu_that_ended_says_nothing_of_the_next_pair(
    world: World,
) -> None:
    """As found: the host of a QEMU that was told to end never said "protected" again."""
    _vm(world, "a").quit()
    _until(world, lambda: host_of(world.record.owner) == "b")
    assert _until_protected(world, 20_000)
    assert [host.core and host.core.decision.gap for host in world.hosts.values()] == ["", ""]


@pytest.mark.parametrize("node", ["nbd1", "#block114"])
def test_a_write_that_one_image_lacks_is_not_forgotten_while_no_daemon_runs(
    world: World, node: str
) -> None:
    a, generation = world.hosts["a"], world.record.generation
    a.kill_daemon()
    _vm(world, "a").emit(VmEventKind.DISK_BAD, **{"node-name": node, "type": "write"})
    world.run(500 * MS, lambda: None)
    a.start_daemon()
    _until(world, lambda: world.record.generation > generation)
    assert host_of(world.record.owner) == ("a" if node == "nbd1" else "b")
    assert _until_protected(world, 20_000)


def test_a_disk_that_failed_where_the_vm_serves_stays_failed_over_a_restart(world: World) -> None:
    _vm(world, "a").emit(VmEventKind.BLOCK_ERROR, reason="no room")
    a = world.hosts["a"]
    assert a.core is not None
    why = a.core.unfit()
    assert why == "its disk failed (no room)"
    world.arbiter_cut |= {"a", "b"}  # else its replica takes over
    a.kill_daemon()
    a.start_daemon()
    assert a.core is not None
    assert a.core.unfit() == why


def test_a_write_that_fails_while_the_replica_is_made_ends_the_attempt(world: World) -> None:
    """Until both run under COLO the primary takes no turns, but what it writes is copied."""
    a, b = world.hosts["a"], world.hosts["b"]
    b.crash()
    world.run(1_000 * MS, lambda: None)
    b.boot()
    core = a.core
    assert core is not None
    while core.decision.sentence != "copying the memory":
        world.run(MS, lambda: None)
    attempt = core.my_state().vni
    _vm(world, "a").emit(VmEventKind.DISK_BAD, **{"node-name": "nbd0", "type": "write"})
    assert core.my_state().vni != attempt
    assert "gave up pairing: a write to the secondary's disk failed" in [t for _, t in core.history]
    assert _until_protected(world, 40_000)


@pytest.fixture
def shared() -> World:
    """The same with one disk for both; b has taken over from a, and a is its secondary."""
    world = World(4, bad_loads=0.0, fence=FenceWhen.BEFORE_SOLO, shares_disk=True)
    for host in [Host(world, name) for name in "ab"]:
        host.start_daemon()
    assert _until_protected(world, 20_000)
    world.hosts["a"].crash()
    _until(world, lambda: world.record.kind is Kind.ACTIVE)
    world.hosts["a"].boot()
    assert _until_protected(world, 20_000)
    return world


def test_who_took_over_once_is_fit_though_its_disk_waits_before_the_record_is_read(
    shared: World,
) -> None:
    b = shared.hosts["b"]
    assert host_of(shared.record.owner) == "b"
    b.kill_daemon()
    shared.arbiter_cut.add("b")
    b.start_daemon()
    shared.run(100 * MS, lambda: None)
    assert b.core is not None
    assert b.core.record is None
    _vm(shared, "b").waits_for_disk()
    shared.run(100 * MS, lambda: None)
    assert not b.core.unfit()
    shared.arbiter_cut.clear()
    _until(shared, lambda: not _vm(shared, "b").stopped)
    assert _until_protected(shared, 20_000)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("fence", "shared"),
    [
        (FenceWhen.BEFORE_SOLO, True),
        (FenceWhen.BEFORE_SOLO, False),
        (FenceWhen.AFTER_SOLO, False),
    ],
)
def test_a_host_that_lost_its_vm_is_not_turned_off(
    fence: FenceWhen, shared: bool, seed: int
) -> None:
    """It says so itself: other VMs may run there."""
    world = World(seed, bad_loads=0.0, fence=fence, shares_disk=shared)
    for host in [Host(world, name) for name in "ab"]:
        host.start_daemon()
    assert _until_protected(world, 20_000)
    world.run(world.random.randrange(500) * MS, lambda: None)
    _vm(world, world.random.choice("ab")).die()
    _until(world, lambda: world.record.kind is not Kind.PAIRED)
    assert _until_protected(world, 20_000)
    assert [line for line in world.log if "FENCED" in line] == []
