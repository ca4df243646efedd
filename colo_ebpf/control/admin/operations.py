# SPDX-License-Identifier: GPL-2.0-only
"""What an operator can ask of a daemon: refused at once if nothing can come of it, else begun."""

from __future__ import annotations

from colo_ebpf.control.core.core import Core
from colo_ebpf.control.decision import operator, poweroff
from colo_ebpf.control.decision.record import Record, host_of
from colo_ebpf.control.decision.snapshot import Request
from colo_ebpf.errors import ControlError


def switchover_question(core: Core, now_ns: int) -> str:
    """What a switchover would do. ControlError if it is refused."""
    record = _may_switch_over(core, now_ns)
    here, there = host_of(record.owner), host_of(record.other)
    return f"Let the VM on {there} take over, and make a new replica on {here}?"


def switch_over(core: Core, now_ns: int) -> str:
    """Begin a switchover; its token. ControlError if it is refused."""
    record = _may_switch_over(core, now_ns)
    return _begin(core, Request(core.effects.token(), now_ns, record.other))


def _may_switch_over(core: Core, now_ns: int) -> Record:
    """The record of the pair. ControlError if it cannot change places."""
    s = core.snapshot(now_ns)
    why = operator.no_switchover(s, core.decision)
    if why or s.record is None:
        raise ControlError(f"no switchover: {why}")
    return s.record


def question(core: Core, generation: int, now_ns: int) -> str:
    """What a forced failover would do, and what it may cost. ControlError if it is refused."""
    s = core.snapshot(now_ns)
    if why := operator.no_force(s, generation):
        raise ControlError(f"no failover: {why}")
    return operator.cost_of_force(s)


def fail_over(core: Core, generation: int, now_ns: int) -> str:
    """Begin a forced failover; its token. ControlError if it is refused."""
    s = core.snapshot(now_ns)
    why = operator.no_force(s, generation)
    if why or s.vm is None:
        raise ControlError(f"no failover: {why}")
    request = Request(core.effects.token(), now_ns, s.vm.instance, overrides=generation)
    return _begin(core, request)


def start(core: Core, now_ns: int) -> str:
    """Begin to start a VM that its guest powered off; its token. ControlError if it is refused."""
    if why := poweroff.no_start(core.snapshot(now_ns)):
        raise ControlError(f"not started: {why}")
    winner = f"{core.who.host}/{core.effects.token()}"
    return _begin(core, Request(core.effects.token(), now_ns, winner, starts=True))


def pause(core: Core, on: bool, now_ns: int, until_s: int = 0, why: str = "") -> None:
    """Pause protection on both hosts, or end that. Said again it changes nothing."""
    word = core.pause.next(on, until_s, why)
    if word == core.pause:
        return
    core.take_pause(word, now_ns)
    core.cycle(now_ns)


def end_pause(core: Core, wall_s: float, now_ns: int) -> None:
    """End one whose time is up."""
    if core.pause.over(wall_s):
        pause(core, False, now_ns)


def _begin(core: Core, request: Request) -> str:
    core.requests.request = request
    core.cycle(now_ns=request.at_ns)
    return request.token
