# SPDX-License-Identifier: GPL-2.0-only
"""Real servers in a real guest: what users feel alone, in our pair and in QEMU's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from colo_ebpf.bench.apps import guest as guests
from colo_ebpf.bench.apps.lane import ALONE, LANES, OURS, STOCK, STOCK_500, TWINS, Lane
from colo_ebpf.bench.apps.lane_ours import AloneLane, OursLane
from colo_ebpf.bench.apps.lane_stock import StockLane
from colo_ebpf.bench.apps.lane_twins import TwinsLane
from colo_ebpf.bench.apps.loads import LOADS, Load
from colo_ebpf.bench.apps.rounds import Rounds, Told
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.topology import Guest

NAME = "coloapps"
_MAKE: dict[str, Callable[[str, Guest], Lane]] = {
    ALONE: AloneLane,
    TWINS: TwinsLane,
    OURS: OursLane,
    STOCK: StockLane,
    STOCK_500: partial(StockLane, period_ms=500),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it."""

    lanes: tuple[str, ...] = LANES
    loads: tuple[Load, ...] = LOADS
    rounds: int = 5
    seconds: float = 2.0  # of each load


def chosen_lanes(names: str) -> tuple[str, ...]:
    """With commas between them; empty: all. BenchError for one that is none."""
    wanted = [name for name in names.split(",") if name]
    if unknown := [name for name in wanted if name not in LANES]:
        raise BenchError(f"{unknown[0]}: not one of {', '.join(LANES)}")
    return tuple(wanted) or LANES


def try_out(plan: Plan, told: Told, say: Callable[[str], None], name: str = NAME) -> Rounds:
    """Some lanes and loads; each reading is told as it comes."""
    rounds = Rounds(told, say)
    asyncio.run(_rounds(rounds, plan, name))
    return rounds


async def _rounds(rounds: Rounds, plan: Plan, name: str) -> None:
    guest = await guests.find()
    lanes = {lane: _MAKE[lane](name, guest) for lane in plan.lanes}
    for _ in range(plan.rounds):
        for lane in plan.lanes:
            await rounds.turn(lane, lanes[lane], plan.loads, plan.seconds)
