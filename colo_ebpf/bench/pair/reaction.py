# SPDX-License-Identifier: GPL-2.0-only
"""How fast a mismatch becomes a checkpoint, and how often one is taken without a cause.

The guest's dice differ in the two VMs at every roll. The product measures itself: from the moment
the kernel noted the mismatch until QEMU is asked for the checkpoint.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from colo_ebpf.bench.lanes.workload import percentile
from colo_ebpf.bench.pair.vm_pair import Pair
from colo_ebpf.bench.results import Recorder
from colo_ebpf.lab.workload import Datagrams, Dice, Download, Ledger, until_serving

PART = "control"
_LOOK_EVERY = 16  # rolls; the status tells of the last 64 checkpoints
_ASKED_FOR = ("operator", "longest-epoch", "pairing", "warm-up")
_PACE_BYTES_S = 2 << 20


async def mismatches(recorder: Recorder, pair: Pair, count: int) -> None:
    """Roll until so many checkpoints were taken for a mismatch."""
    client, host = pair.client(), await asyncio.to_thread(pair.serving)
    await until_serving(client)
    dice = Dice(client)
    first = (await _status(pair, host))["epoch"]
    found: dict[int, dict[str, Any]] = {}
    while len(found) < count:
        for _ in range(_LOOK_EVERY):
            await dice.roll()
        for one in (await _status(pair, host))["checkpoints"]["recent"]:
            if one["epoch"] > first and one["cause"] == "mismatch":
                found[one["epoch"]] = one
    reactions = sorted(one["reaction_ms"] for one in found.values())
    for percent in (50, 99):
        recorder.add(
            PART,
            f"mismatch to checkpoint request, p{percent}",
            "ours",
            "ms",
            values=(percentile(reactions, percent / 100),),
            note=f"{len(reactions)} checkpoints, longest {reactions[-1]:.2f} ms",
        )


async def _status(pair: Pair, host: str) -> dict[str, Any]:
    return await asyncio.to_thread(pair.status, host)


def causes_between(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Checkpoints that nobody asked for, by cause."""
    grown = {cause: count - before.get(cause, 0) for cause, count in after.items()}
    return {c: n for c, n in grown.items() if n and c not in _ASKED_FOR}


async def without_cause(recorder: Recorder, pair: Pair, seconds: float) -> None:
    """A client works; both VMs say the same, so that no checkpoint is needed."""
    client, host = pair.client(), await asyncio.to_thread(pair.serving)
    await until_serving(client)
    stop, total = asyncio.Event(), int(_PACE_BYTES_S * seconds)
    download = Download(client, total, _PACE_BYTES_S)
    jobs = [Ledger(client).run(stop)]
    jobs += [Datagrams(client, kind).run(stop) for kind in ("icmp", "udp")]
    before = (await _status(pair, host))["checkpoints"]["by_cause"]
    since = time.monotonic()
    work = [asyncio.create_task(job) for job in jobs]
    await download.run()
    stop.set()
    await asyncio.gather(*work)
    minutes = (time.monotonic() - since) / 60
    found = causes_between(before, (await _status(pair, host))["checkpoints"]["by_cause"])
    told = ", ".join(f"{cause} {count}" for cause, count in found.items()) or "none"
    recorder.add(
        PART,
        "checkpoints without a cause under load",
        "ours",
        "/min",
        values=(sum(found.values()) / minutes,),
        note=f"{told} in {60 * minutes:.0f} s of ledger, download, pings and datagrams",
    )
