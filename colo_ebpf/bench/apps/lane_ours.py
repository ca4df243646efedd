# SPDX-License-Identifier: GPL-2.0-only
"""The product with its defaults: a protected pair, and the same with one host gone (alone)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from colo_ebpf.bench.apps import guest as guests
from colo_ebpf.bench.apps.clients import Where
from colo_ebpf.bench.apps.lane import Checkpoints, Measured
from colo_ebpf.bench.apps.loads import Load
from colo_ebpf.bench.pair.vm_pair import Pair
from colo_ebpf.errors import BenchError
from colo_ebpf.lab import faults
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import Guest

_SETTLES_S = 1.0  # what a boot leaves behind


class OursLane:
    """Both daemons, both VMs. `mode`: of checkpoints; empty: the default."""

    def __init__(self, name: str, guest: Guest, mode: str = "") -> None:
        self._lab = Lab(name)
        self._guest = replace(guest, checkpoint_mode=mode)
        self.pair = Pair(self._lab)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A protected pair whose guest has booted."""
        try:
            await asyncio.to_thread(self._lab.up, self._guest)
            await guests.until_serving(self._lab.places["a"].run_dir)
            await asyncio.sleep(_SETTLES_S)
            yield
        finally:
            await asyncio.to_thread(self._lab.down)

    async def measure(self, load: Load, seconds: float) -> Measured:
        """With the checkpoints meanwhile, by cause."""
        before, since = await self._status(), time.monotonic()
        reading = await load.run(self.where, seconds)
        after, took_s = await self._status(), time.monotonic() - since
        if not after["protected"] or after["state"] != "primary":
            raise BenchError(f"the pair broke: {after['sentence']}")
        return Measured(reading, checkpoints_between(before, after, took_s))

    @property
    def where(self) -> Where:
        """The guest."""
        return Where(self._lab.namespace_of("client"), self._guest.address)

    async def _status(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.pair.status, "a")


class AloneLane:
    """The daemon and its VM after the other host has died: what a user has without a pair."""

    def __init__(self, name: str, guest: Guest) -> None:
        self._lab = Lab(name)
        self._pair = OursLane(name, guest)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """As a pair; then host b is killed."""
        async with self._pair.running():
            await asyncio.to_thread(faults.kill, self._lab, "b", "host")
            await self._pair.pair.until("a", _settled, "does not go on alone")
            yield

    async def measure(self, load: Load, seconds: float) -> Measured:
        """There are no checkpoints."""
        return Measured(await load.run(self._pair.where, seconds))


def _settled(status: dict[str, Any]) -> bool:
    return status["state"] == "solo" and status["step"] is None


def checkpoints_between(
    before: dict[str, Any], after: dict[str, Any], seconds: float
) -> Checkpoints:
    """From two answers of a daemon. Pure. The second names the last few checkpoints only."""
    old, new = before["checkpoints"], after["checkpoints"]
    causes = {c: n - old["by_cause"].get(c, 0) for c, n in new["by_cause"].items()}
    first = before["epoch"]
    pauses = tuple(one["pause_ms"] for one in new["recent"] if one["epoch"] > first)
    return Checkpoints(seconds, {c: n for c, n in causes.items() if n}, pauses)
