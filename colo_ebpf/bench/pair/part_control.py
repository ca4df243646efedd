# SPDX-License-Identifier: GPL-2.0-only
"""Checkpoints, stalls, failovers and idle costs, with real guests.

Quick: one tenth of the readings, two failovers of each kind.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from colo_ebpf.bench.pair import failover, idle, pause, reaction, stall
from colo_ebpf.bench.pair.vm_pair import NAME, protected
from colo_ebpf.bench.results import Recorder
from colo_ebpf.bench.suite import Effort


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much of everything."""

    idle_s: float = 30
    mismatches: int = 300
    load_s: float = 60
    stalls: int = 20
    qemu_stalls: int = 10
    groups: tuple[int, ...] = (6, 6, 6, 6)
    kills: tuple[str, ...] = ("vm",) * 20 + ("host",) * 20


QUICK = Amounts(
    idle_s=5,
    mismatches=100,
    load_s=10,
    stalls=5,
    qemu_stalls=4,
    groups=(3, 3),
    kills=("vm", "vm", "host", "host"),
)


def run(recorder: Recorder, effort: Effort) -> None:
    """All of it."""
    measure(recorder, QUICK if effort.quick else Amounts())


def measure(recorder: Recorder, amounts: Amounts, name: str = NAME) -> None:
    """On a lab of this name."""
    with protected(recorder, name) as pair:
        asyncio.run(pair.until_serving())
        idle.measure(recorder, pair, amounts.idle_s)
        asyncio.run(pause.alternate(recorder, pair, amounts.groups))
        asyncio.run(reaction.mismatches(recorder, pair, amounts.mismatches))
        asyncio.run(stall.ours(recorder, pair, amounts.stalls))
        asyncio.run(reaction.without_cause(recorder, pair, amounts.load_s))
    stall.qemu(recorder, amounts.qemu_stalls)
    with protected(recorder, name) as pair:
        found = asyncio.run(failover.Failovers(recorder, pair).run(amounts.kills))
    for what, ones in found.items():
        failover.spread(recorder, what, ones)
