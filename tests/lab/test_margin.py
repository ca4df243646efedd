# SPDX-License-Identifier: GPL-2.0-only
"""A machine that is busy is not taken for one that is dead, at the default deadlines."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from typing import Any

from colo_ebpf.config.schema import Timing
from colo_ebpf.lab.client import Client
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import HOSTS
from colo_ebpf.lab.workload import Dice, Ledger, until_serving
from tests.capabilities import require
from tests.lab import clean

_BUSY_S = 12
_PER_CPU = 3


def _status(lab: Lab, host: str) -> dict[str, Any]:
    status = lab.ask(host)
    assert status is not None
    return dict(status)


async def _work(lab: Lab) -> None:
    """A client, while every CPU has more to do than it can."""
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    ledger, dice, stop = Ledger(client), Dice(client), asyncio.Event()
    work = [asyncio.create_task(one.run(stop)) for one in (ledger, dice)]
    spin = ["timeout", str(_BUSY_S), "sh", "-c", "while :; do :; done"]
    count = _PER_CPU * len(os.sched_getaffinity(0))
    spinning = [
        await asyncio.create_subprocess_exec(*spin, stdin=subprocess.DEVNULL) for _ in range(count)
    ]
    for process in spinning:
        await process.wait()
    stop.set()
    await asyncio.gather(*work)
    await ledger.recheck()
    assert ledger.wrong == []


def test_a_busy_machine_parts_nobody(say: Callable[[str], None]) -> None:
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotestb"))
    try:
        lab.up(choose(Wanted()))
        before = _status(lab, "a")["record"]
        asyncio.run(_work(lab))
        after = {host: _status(lab, host) for host in HOSTS}
        assert all(status["protected"] for status in after.values())
        assert after["a"]["record"] == before
        longest = max(status["peer"]["link_longest_ms"] for status in after.values())
        limits = f"link {Timing().link_timeout_ms}, peer {Timing().peer_timeout_ms}"
        say(f"longest silence {longest:.0f} ms (timeouts: {limits})")
    finally:
        lab.down()
