# SPDX-License-Identifier: GPL-2.0-only
"""`protected` is a promise: a single failure at this moment would be survived.

In random histories a moment is drawn at which a host says so. From then on everything is as it is,
but for one failure: the VM serves on, on either host, with all that clients were told.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from colo_ebpf.model import Mode
from tests.sim.host import LOOK_NS, Host
from tests.sim.test_pair import History, _check
from tests.sim.world import MS, TIMING, World

_SEEDS = 400
_NOTICED_NS = 3 * TIMING.peer_timeout_ns + LOOK_NS
_FOR_NS = 20 * TIMING.peer_timeout_ns
_SILENCE_NS = 8 * TIMING.peer_timeout_ns


def _vm(host: Host) -> None:
    if host.vm is not None:
        host.vm.die()


def _hang(host: Host) -> None:
    host.pause()


def _disk(host: Host) -> None:
    if host.vm is not None:
        host.vm.fail_disk()


_FAILURES: list[Callable[[Host], None]] = [_vm, Host.crash, _hang, _disk]


class _Moment(History):
    """A history that stops at a moment at which a host calls the pair protected."""

    def reach(self) -> Host | None:
        """The host that says so; None if the history ended before."""
        world, rng = self.world, self.world.random
        world.bad_loads = 0.0  # a load that goes wrong is a failure of its own
        world.run(4_000 * MS, self._look)
        for _ in range(rng.randrange(1, 9)):
            self._fault()
            world.run(world.delay_ns(1, rng.choice([5, 60, 400, 1500])), self._look)
        world.run(_NOTICED_NS, self._look)  # what is broken by now
        for _ in range(400):
            says = [h for h in world.hosts.values() if _says(h)]
            if says:
                return rng.choice(says)
            world.run(5 * MS, self._look)
        return None


def _says(host: Host) -> bool:
    core = host.core
    return core is not None and not host.paused and not core.decision.gap


def _speaks(world: World) -> bool:
    """Output passes somewhere: of a VM alone, or compared by two that hear each other."""
    return any(_passes(host) for host in world.hosts.values())


def _passes(host: Host) -> bool:
    if host.vm is None or not host.vm.acts or host.paused:
        return False
    hears = host.now_ns - host.plane.heard_ns <= TIMING.peer_timeout_ns
    return host.plane.mode() is Mode.SOLO or (host.plane.mode() is Mode.PRIMARY and hears)


def _longest_silence_ns(world: World) -> int:
    """From now on. A pair that is made again withholds for the time of a checkpoint."""
    end_ns, spoke_ns, longest_ns = world.now_ns + _FOR_NS, world.now_ns, 0
    while world.now_ns < end_ns:
        world.run(10 * MS, lambda: _check(world))
        longest_ns = max(longest_ns, world.now_ns - spoke_ns)
        spoke_ns = world.now_ns if _speaks(world) else spoke_ns
    return longest_ns


@pytest.mark.parametrize("batch", range(8))
def test_a_single_failure_at_a_moment_that_says_protected_is_survived(batch: int) -> None:
    reached = 0
    for seed in range(batch, _SEEDS, 8):
        history = _Moment(seed)
        world = history.world
        host = history.reach()
        if host is None:
            continue
        reached += 1
        failure = world.random.choice(_FAILURES)
        victim = world.random.choice(list(world.hosts.values()))
        world.note(f"PROTECTED says {host.name}; {failure.__name__} {victim.name}")
        failure(victim)
        world.lost_vms += 1
        silent_ns = _longest_silence_ns(world)
        tail = "\n".join(world.log[-40:])
        assert silent_ns < _SILENCE_NS, f"seed {seed}: silent for {silent_ns / MS} ms\n{tail}"
    assert reached >= _SEEDS // 80
