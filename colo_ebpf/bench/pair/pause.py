# SPDX-License-Identifier: GPL-2.0-only
"""How long a checkpoint of an idle guest stops it: our settings beside QEMU's own, in turn.

Both are measured from the STOP to the RESUME of the primary's QEMU, as its monitor tells them.
Ours differ in the route to the peer (quickack: QEMU's small messages wait for no delayed ACK), in
the bandwidth that migration may take, and in who decides when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from colo_ebpf.bench.pair.stock import StockPair
from colo_ebpf.bench.pair.vm_pair import Pair
from colo_ebpf.bench.results import Recorder
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.guest import Wanted, choose

PART, MEASURE = "control", "checkpoint pause, idle guest"
_REST_S = 0.2  # between checkpoints: so long the guest idles, in both
STOCK_NAME = "colostock"


async def alternate(recorder: Recorder, pair: Pair, groups: Sequence[int]) -> None:
    """`groups`: how many checkpoints each is asked for, before it is the other one's turn."""
    host = await asyncio.to_thread(pair.serving)
    status = await asyncio.to_thread(pair.status, host)
    accel = status["vm_process"]["accel"]
    stock = StockPair(STOCK_NAME, choose(Wanted()), accel)
    ours: list[float] = []
    theirs: list[float] = []
    async with stock.running():
        recorder.say("a pair under QEMU's own settings runs beside ours")
        await stock.checkpoint_ms()  # the first one copies all of the memory
        for count in groups:
            for _ in range(count):
                await asyncio.sleep(_REST_S)
                ours.append(await ours_ms(pair, host))
            for _ in range(count):
                await asyncio.sleep(_REST_S)
                theirs.append(await stock.checkpoint_ms())
    note = f"128 MiB, {accel}, from STOP to RESUME"
    recorder.add(PART, MEASURE, "ours", "ms", values=ours, note=note)
    recorder.add(PART, MEASURE, "qemu", "ms", values=theirs, note=note)


async def ours_ms(pair: Pair, host: str) -> float:
    """Of a checkpoint that is asked for now."""
    asked = await asyncio.to_thread(pair.lab.ask, host, "checkpoint")
    if asked is None:
        raise BenchError(f"host {host} takes no checkpoint")
    status = await pair.until(
        host, lambda s: s["checkpoints"]["last"]["epoch"] > asked["epoch"], "no checkpoint", 30
    )
    return float(status["checkpoints"]["last"]["pause_ms"])
