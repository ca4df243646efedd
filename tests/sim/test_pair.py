# SPDX-License-Identifier: GPL-2.0-only
"""Never two VMs alone, never a reply forgotten, and protected again when the faults stop.

COLO_SIM_SEEDS sets how many histories are tried, from COLO_SIM_FIRST on (`make soak` tries many); a
failing seed prints what happened and replays exactly: `COLO_SIM_SEEDS=1 COLO_SIM_FIRST=<seed>`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from colo_ebpf.control.admin import operations
from colo_ebpf.control.decision.actions import State
from colo_ebpf.control.decision.record import Kind
from colo_ebpf.control.decision.snapshot import FenceWhen
from colo_ebpf.control.peer.state import Path
from colo_ebpf.errors import ControlError
from colo_ebpf.model import Mode
from tests import states
from tests.sim.host import Host
from tests.sim.world import MS, World

SEEDS = int(os.environ.get("COLO_SIM_SEEDS", "1000"))
FIRST = int(os.environ.get("COLO_SIM_FIRST", "0"))
_BATCHES = 20
_HISTORY_MS = 9_000
_FENCES = (FenceWhen.OFF, FenceWhen.BEFORE_SOLO, FenceWhen.AFTER_SOLO)


class BrokenError(AssertionError):
    """With the history that led to it."""


def _check(world: World) -> None:
    """After every event."""
    alone = [
        host
        for host in world.hosts.values()
        if host.plane.mode() is Mode.SOLO and host.vm is not None and host.vm.acts
    ]
    if len(alone) > 1:
        raise BrokenError("two VMs are alone")
    for host in alone:
        vm = host.vm
        assert vm is not None
        if vm.replica:
            raise BrokenError(f"{host.name} serves and was not told to take over")
        if vm.sick:
            raise BrokenError(f"{host.name} serves from a disk that failed")
        if not vm.complete or vm.state < world.client_seen:
            raise BrokenError(f"{host.name} serves without what clients were told")
        if not host.paused and not vm.stopped:
            vm.state += 1
            world.client_seen = vm.state
            if host.merged:
                host.keep(vm.state)  # what is promised to clients was flushed before


def _protected(world: World) -> bool:
    """Both are a pair, and `status` says so."""
    told = [h.core.decision for h in world.hosts.values() if h.core is not None]
    paired = {one.state for one in told} == {State.PRIMARY, State.SECONDARY}
    return paired and not any(one.gap for one in told)


def _nothing() -> None: ...


def _start(world: World) -> None:
    """The operator starts a VM that is off, wherever its image is."""
    for host in world.hosts.values():
        if host.core is None or host.paused:
            continue
        with contextlib.suppress(ControlError):
            operations.start(host.core, host.now_ns)
            world.wanted = True


def _until_protected(
    world: World, limit_ms: int, look: Callable[[], None] = _nothing, *, ends: bool = False
) -> bool:
    """`ends`: its guest may end it, then it is started again."""
    for _ in range(limit_ms // 100):
        world.run(100 * MS, look)
        if ends and world.record.kind is Kind.OFF:
            _start(world)
        if _protected(world):
            return True
    return False


def _serves(world: World) -> bool:
    return any(
        host.plane.mode() in (Mode.SOLO, Mode.PRIMARY) and host.vm is not None and host.vm.acts
        for host in world.hosts.values()
    )


class History:
    """One pair from cold start, through random faults, to rest."""

    def __init__(self, seed: int) -> None:
        fence = _FENCES[seed % len(_FENCES)]
        shared = fence is FenceWhen.BEFORE_SOLO and seed % 2 == 0
        reserves = shared and seed % 4 == 0  # instead of a fence
        fence = FenceWhen.OFF if reserves else fence
        self.world = World(seed, fence=fence, shares_disk=shared, reserves=reserves)
        self.moves: set[tuple[str, str]] = set()
        self._states: dict[str, str] = {}
        for host in [Host(self.world, name) for name in "ab"]:
            host.start_daemon()

    def _look(self) -> None:
        """After every event."""
        _check(self.world)
        for name, host in self.world.hosts.items():
            if host.core is None:
                self._states.pop(name, None)
                continue
            new = host.core.decision.state.value
            old, self._states[name] = self._states.get(name, new), new
            if old != new:
                self.moves.add((old, new))

    def run(self) -> None:
        """Raises BrokenError."""
        world, rng = self.world, self.world.random
        if not _until_protected(world, 20_000, self._look):
            raise BrokenError("a cold start does not lead to a pair")
        world.loss = rng.choice([0.0, 0.0, 0.05, 0.3])
        world.fence_works = False
        end_ns = world.now_ns + _HISTORY_MS * MS
        while world.now_ns < end_ns:
            self._fault()
            world.run(world.delay_ns(1, rng.choice([5, 60, 400, 1500])), self._look)
        self._heal()
        if not _until_protected(world, 90_000, self._look, ends=True) and not self._excused():
            raise BrokenError("faults are over and the pair is not protected again")

    def _fault(self) -> None:
        world, rng = self.world, self.world.random
        host = world.hosts[rng.choice("ab")]
        kinds = ["cut", "heal-cut", "pause", "resume", "daemon", "start", "arbiter", "checkpoint"]
        kinds += ["disk", "switchover", "force", "frames"]
        if world.seed % 4 == 0:  # a paused pair fails over less
            kinds += ["pause-pair", "resume-pair"]
        if world.seed % 3 == 0:
            kinds += ["power-off", "reboot", "start-vm"]
        if world.shares_disk:
            kinds += ["not-kept"]
        if world.lost_vms == 0 or world.seed % 2:  # the odd ones lose both sides, too
            kinds += ["crash", "vm", "quit"]
        kind = rng.choice(kinds)
        world.note(f"FAULT {kind} {host.name}")
        simple = {
            "pause": host.pause,
            "resume": host.resume,
            "daemon": host.kill_daemon,
            "start": host.start_daemon,
            "power-off": lambda: self._power_off(host),
            "reboot": lambda: self._reboot(host),
            "start-vm": lambda: _start(world),
            "disk": lambda: self._fail_disk(host),
            "not-kept": lambda: self._not_kept(host),
            "switchover": lambda: self._switch_over(host),
            "force": lambda: self._force(host),
            "pause-pair": lambda: self._pause(host, on=True),
            "resume-pair": lambda: self._pause(host, on=False),
        }
        if kind in simple:
            simple[kind]()
        elif kind == "cut":
            path = rng.choice(list(Path))
            sources = rng.choice(["a", "b", "ab", "ab"])
            world.cut |= {(source, path) for source in sources}
        elif kind == "frames":
            world.frames_cut |= set(rng.choice(["a", "b", "ab"]))
        elif kind == "heal-cut":
            world.cut.clear()
            world.frames_cut.clear()
        elif kind == "arbiter":
            world.arbiter_cut ^= {host.name}
        elif kind == "checkpoint" and host.core is not None and host.core.checkpointing:
            self._checkpoint(host)
        elif kind == "crash":
            world.lost_vms += 1
            host.crash()
        elif kind in ("vm", "quit") and host.vm is not None and host.vm.acts:
            world.lost_vms += 1
            (host.vm.die if kind == "vm" else host.vm.quit)()

    def _power_off(self, host: Host) -> None:
        """Both VMs of a pair do it, one a moment ahead; or only one does."""
        world = self.world
        if host.vm is not None:
            host.vm.power_off()
        if host.other.vm is not None and world.random.random() < 0.7:
            world.after(world.delay_ns(0, 30), host.other.vm.power_off)

    def _reboot(self, host: Host) -> None:
        for one in (host, host.other):
            if one.vm is not None:
                one.vm.reboot()

    def _fail_disk(self, host: Host) -> None:
        """Of a replica: what fails where the VM serves is its guest's to see."""
        vm = host.vm
        r = self.world.record
        forced = host.core is not None and host.core.requests.request is not None
        if (
            not forced
            and vm is not None
            and vm.acts
            and r.kind is Kind.PAIRED
            and vm.instance == r.other
        ):
            vm.fail_disk()

    def _not_kept(self, host: Host) -> None:
        """A write of the VM that serves, or would, waits for the shared disk or the secondary."""
        vm = host.vm
        if vm is not None and vm.instance == self.world.record.owner:
            vm.waits_for_disk()

    def _switch_over(self, host: Host) -> None:
        """Asked of whoever it is; most of the time it is refused."""
        if host.core is not None and not host.paused:
            with contextlib.suppress(ControlError):
                operations.switch_over(host.core, host.now_ns)

    def _pause(self, host: Host, *, on: bool) -> None:
        if host.core is not None and not host.paused:
            operations.pause(host.core, on, host.now_ns)

    def _force(self, host: Host) -> None:
        """Never onto a disk that failed: what that costs is the operator's to bear."""
        core, vm = host.core, host.vm
        if core is None or core.record is None or host.paused or (vm is not None and vm.sick):
            return
        with contextlib.suppress(ControlError):
            operations.fail_over(core, core.record.generation, host.now_ns)

    def _checkpoint(self, host: Host) -> None:
        from colo_ebpf.control.checkpoint.primary import Cause

        assert host.core is not None
        host.core.checkpoints.primary.ask(Cause.OPERATOR, host.now_ns)
        host.core.cycle(host.now_ns)

    def _heal(self) -> None:
        self.world.note("HEAL")
        self.world.cut.clear()
        self.world.frames_cut.clear()
        self.world.arbiter_cut.clear()
        self.world.loss = 0.0
        self.world.fence_works = True
        for host in self.world.hosts.values():
            host.resume()
            if not host.up:
                host.boot()
            if host.core is not None and "cannot be fenced" in host.core.decision.sentence:
                host.kill_daemon()  # as its sentence says
            host.start_daemon()
        self.world.run(1_000 * MS, self._look)
        for _ in range(20):  # one may have been fenced by then, and comes back
            if all(host.core is not None for host in self.world.hosts.values()):
                break
            self.world.run(1_000 * MS, self._look)
        self.world.run(1_000 * MS, self._look)  # each learns what the other knows
        for host in self.world.hosts.values():
            self._pause(host, on=False)

    def _excused(self) -> bool:
        """A VM was lost while part of its disk was in its memory only, or a claim was to be acted
        on by a new daemon that finds failed requests to a disk, here and there, and cannot know
        since which checkpoint: an operator chooses."""
        hosts = self.world.hosts.values()
        states = {h.core.decision.state for h in hosts if h.core is not None}
        lost = self.world.lost_vms > 0 and not _serves(self.world)
        failed = all(h.vm is None or not h.vm.acts or h.vm.ever_sick for h in hosts)
        doubt = failed and self.world.record.kind is Kind.CLAIMED
        return State.STUCK in states and (lost or doubt)


def _try(seed: int) -> tuple[str, set[tuple[str, str]]]:
    """What went wrong ("" if nothing did), with the end of the history; the moves it made."""
    history = History(seed)
    try:
        history.run()
    except AssertionError as e:
        tail = "\n".join(history.world.log[-80:])
        return f"seed {seed}: {e}\n{tail}", history.moves
    return "", history.moves


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Histories have nothing to do with each other: every CPU takes some."""
    with ProcessPoolExecutor(mp_context=get_context("forkserver")) as pool:
        yield pool


@pytest.fixture(scope="module")
def moves() -> set[tuple[str, str]]:
    """Of all histories so far."""
    return set()


@pytest.mark.parametrize("batch", range(min(_BATCHES, SEEDS)))
def test_the_pair_never_splits_and_heals(
    batch: int, processes: ProcessPoolExecutor, moves: set[tuple[str, str]]
) -> None:
    seeds = range(FIRST + batch, FIRST + SEEDS, _BATCHES)
    for failure, made in processes.map(_try, seeds, chunksize=20):
        if failure:
            pytest.fail(failure, pytrace=False)
        moves |= made


def test_every_move_is_in_the_document(moves: set[tuple[str, str]]) -> None:
    new = moves - states.moves()
    assert not new, "\n".join(["put into docs/reference/states.md:", *states.move_rows(moves)])


@pytest.mark.parametrize("seed", range(40))
def test_the_host_of_a_vm_that_died_joins_again_at_the_first_offer(seed: int) -> None:
    """Its old VM is gone; that says nothing about the one to be made."""
    world = World(seed, bad_loads=0.0)
    for host in [Host(world, name) for name in "ab"]:
        host.start_daemon()

    def look() -> None:
        _check(world)

    assert _until_protected(world, 20_000, look)
    for name in "abab":
        world.run(1_000 * MS, look)  # a VM that dies inside a load may take the other one along
        assert _until_protected(world, 20_000, look)
        vm = world.hosts[name].vm
        assert vm is not None
        vm.die()
        for _ in range(1_000):
            if not _protected(world):
                break
            world.run(MS, look)
        assert not _protected(world)
        assert _until_protected(world, 20_000, look)
    assert [line for line in world.log if "gave up pairing: the VM of" in line] == []
