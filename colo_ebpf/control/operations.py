# SPDX-License-Identifier: GPL-2.0-only
"""What an operator can ask of a daemon: refused at once if nothing can come of it, else begun."""

from __future__ import annotations

from colo_ebpf.control import planned, poweroff
from colo_ebpf.control.core import Core
from colo_ebpf.control.facts import Wish
from colo_ebpf.control.pause import Pause
from colo_ebpf.errors import ControlError


def switch_over(core: Core, now_ns: int) -> str:
    """Begin a switchover; its token. ControlError if it is refused."""
    s = core.snapshot(now_ns)
    why = planned.no_switchover(s, core.decision)
    if why or s.record is None:
        raise ControlError(f"no switchover: {why}")
    return _begin(core, Wish(core.effects.token(), now_ns, s.record.other))


def question(core: Core, generation: int, now_ns: int) -> str:
    """What a forced failover would do, and what it may cost. ControlError if it is refused."""
    s = core.snapshot(now_ns)
    if why := planned.no_force(s, generation):
        raise ControlError(f"no failover: {why}")
    return planned.cost_of_force(s)


def fail_over(core: Core, generation: int, now_ns: int) -> str:
    """Begin a forced failover; its token. ControlError if it is refused."""
    s = core.snapshot(now_ns)
    why = planned.no_force(s, generation)
    if why or s.vm is None:
        raise ControlError(f"no failover: {why}")
    wish = Wish(core.effects.token(), now_ns, s.vm.instance, overrides=generation)
    return _begin(core, wish)


def start(core: Core, now_ns: int) -> str:
    """Begin to start a VM that its guest powered off; its token. ControlError if it is refused."""
    if why := poweroff.no_start(core.snapshot(now_ns)):
        raise ControlError(f"not started: {why}")
    winner = f"{core.who.host}/{core.effects.token()}"
    return _begin(core, Wish(core.effects.token(), now_ns, winner, starts=True))


def pause(core: Core, on: bool, now_ns: int) -> None:
    """Pause protection on both hosts, or end that. Said again it changes nothing."""
    if core.pause.on is on:
        return
    core.take_pause(Pause(core.pause.number + 1, on), now_ns)
    core.cycle(now_ns)


def _begin(core: Core, wish: Wish) -> str:
    core.wishes.wish = wish
    core.cycle(now_ns=wish.at_ns)
    return wish.token
