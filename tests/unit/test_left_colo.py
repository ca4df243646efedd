# SPDX-License-Identifier: GPL-2.0-only
"""Whether checkpoints are still loaded into a VM: a fact of the core, for which no file is read."""

from __future__ import annotations

import pytest

from colo_ebpf.control.core.core import Core
from colo_ebpf.control.interfaces import Past
from colo_ebpf.model import VmEvent, VmEventKind
from tests.sim.host import Host
from tests.sim.test_pair import _until_protected
from tests.sim.vm import ToyVm
from tests.sim.world import World


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Host:
    """The secondary of a protected pair. Nobody reaches the arbiter, nor the log of its QEMU."""
    world = World(4, bad_loads=0.0)
    a, b = Host(world, "a"), Host(world, "b")
    for host in (a, b):
        host.start_daemon()
    assert _until_protected(world, 20_000)
    world.arbiter_cut |= {"a", "b"}
    monkeypatch.setattr(ToyVm, "past", lambda vm: pytest.fail("the log is read"))
    return b


def _hears(host: Host, kind: VmEventKind) -> Core:
    core, vm = host.core, host.vm
    assert core is not None
    assert vm is not None
    core.vm_event(vm, VmEvent(kind, host.now_ns), host.now_ns)  # type: ignore[arg-type]
    return core


def _adopts(host: Host, past: Past) -> None:
    """A daemon that finds the VM there and has not read the record yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyVm, "past", lambda vm: past)
        host.kill_daemon()
        host.start_daemon()
    assert host.core is not None
    assert host.core.record is None


def test_a_load_mends_the_disk_of_a_replica(replica: Host) -> None:
    fitness = _hears(replica, VmEventKind.BLOCK_ERROR).fitness
    assert fitness.passing
    assert not fitness.lasting


def test_no_load_mends_it_once_colo_was_left(replica: Host) -> None:
    _hears(replica, VmEventKind.COLO_EXIT)
    assert _hears(replica, VmEventKind.BLOCK_ERROR).fitness.lasting


@pytest.mark.parametrize("left", [False, True])
def test_a_daemon_that_adopts_the_vm_knows_it_before_the_record(replica: Host, left: bool) -> None:
    _adopts(replica, Past(left=left))
    assert bool(_hears(replica, VmEventKind.BLOCK_ERROR).fitness.lasting) is left


@pytest.mark.parametrize("left", [False, True])
def test_only_a_load_makes_a_guest_forget_that_it_ended(replica: Host, left: bool) -> None:
    _adopts(replica, Past(left=left))
    core = replica.core
    assert core is not None
    core.checkpoints.guest.off_at_s = 1
    _hears(replica, VmEventKind.RESUME)
    assert (core.checkpoints.guest.off_at_s is None) is not left


def test_a_vm_that_is_started_anew_has_not_left(replica: Host) -> None:
    core = _hears(replica, VmEventKind.COLO_EXIT)
    assert replica.vm is not None
    core.vm_started(replica.vm, None)  # type: ignore[arg-type]
    assert not _hears(replica, VmEventKind.BLOCK_ERROR).fitness.lasting
