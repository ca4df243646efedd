# SPDX-License-Identifier: GPL-2.0-only
"""Real servers in a real guest: what users feel alone, in our pair and in QEMU's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from colo_ebpf.bench.apps import guest as guests
from colo_ebpf.bench.apps import names, relay_cost, rows, told
from colo_ebpf.bench.apps.lane import Lane
from colo_ebpf.bench.apps.lane_lockstep import LockstepLane
from colo_ebpf.bench.apps.lane_ours import AloneLane, OursLane
from colo_ebpf.bench.apps.lane_stock import StockLane
from colo_ebpf.bench.apps.lane_twins import TwinsLane
from colo_ebpf.bench.apps.loads import LOADS, Load, Lockstep, chosen
from colo_ebpf.bench.apps.pauses import Amounts, Pauses
from colo_ebpf.bench.apps.rounds import Rounds, Told
from colo_ebpf.bench.results import Recorder
from colo_ebpf.bench.suite import Effort
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.topology import Guest

NAME = "coloapps"
_MAKE: dict[str, Callable[[str, Guest], Lane]] = {
    names.ALONE: AloneLane,
    names.TWINS: TwinsLane,
    names.LOCKSTEP: LockstepLane,
    names.OURS: OursLane,
    names.COMPARE: partial(OursLane, mode="compare"),
    names.PERIODIC: partial(OursLane, mode="periodic"),
    names.STOCK: StockLane,
    names.STOCK_500: partial(StockLane, period_ms=500),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it."""

    lanes: tuple[str, ...] = names.LANES
    loads: tuple[Load, ...] = LOADS
    rounds: int = 5
    seconds: float = 1.0  # of each load
    relays: int = 5  # readings of what lane lockstep's relay costs
    pauses: Amounts = field(default_factory=Amounts)


QUICK = Plan(
    loads=chosen(
        "get-1,get-50,set-50,incr-50,http-keepalive-1,http-each-20,https-keepalive-1,https-each-1,"
        "file-down,pgbench-s-1,tpcb-8,ssh-echo,dice-1"
    ),
    rounds=1,
    relays=2,
    pauses=Amounts(turns=1, readings=2),
)


def run(recorder: Recorder, effort: Effort) -> None:
    """All lanes under all loads; then the pauses."""
    measure(recorder, QUICK if effort.quick else Plan())


def measure(recorder: Recorder, plan: Plan, name: str = NAME) -> None:
    """In labs of this name."""

    def say(*reading: Any) -> None:
        recorder.say(f"{names.PART}: {told.line(*reading)}")

    rounds = Rounds(say, lambda text: recorder.say(f"{names.PART}: {text}"))
    asyncio.run(_measure(recorder, rounds, plan, name))
    rows.record(recorder, rounds, plan.lanes, plan.loads)


async def _measure(recorder: Recorder, rounds: Rounds, plan: Plan, name: str) -> None:
    await _rounds(rounds, plan, name)
    guest = await guests.find()
    await relay_cost.measure(recorder, name, guest, plan.relays, plan.seconds)
    await Pauses(recorder, name, guest, plan.pauses).measure()


def chosen_lanes(keys: str) -> tuple[str, ...]:
    """With commas between them; empty: all. BenchError for one that is none."""
    wanted = [name for name in keys.split(",") if name]
    if unknown := [name for name in wanted if name not in names.LANES]:
        raise BenchError(f"{unknown[0]}: not one of {', '.join(names.LANES)}")
    return tuple(wanted) or names.LANES


def try_out(plan: Plan, told: Told, say: Callable[[str], None], name: str = NAME) -> Rounds:
    """Some lanes and loads; each reading is told as it comes."""
    rounds = Rounds(told, say)
    asyncio.run(_rounds(rounds, plan, name))
    return rounds


async def _rounds(rounds: Rounds, plan: Plan, name: str) -> None:
    guest = await guests.find()
    lanes = {lane: _MAKE[lane](name, guest) for lane in plan.lanes}
    for lane in plan.lanes:
        for load in plan.loads:
            if why := without(lane, load):
                rounds.leave_out(lane, load, why)
    for _ in range(plan.rounds):
        for lane in plan.lanes:
            await rounds.turn(lane, lanes[lane], plan.loads, plan.seconds)


def without(lane: str, load: Load) -> str:
    """Why the lane has no figure of this load; empty: it has."""
    if lane in names.FIXED:
        return "" if load.differs else "left out: which way is taken makes no difference"
    return load.lockstep.value if lane == names.LOCKSTEP else Lockstep.MEASURED.value
