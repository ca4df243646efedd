# SPDX-License-Identifier: GPL-2.0-only
"""A protected pair of real guests for the benchmarks, and what is asked of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from colo_ebpf.bench.results import Recorder
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.client import Client
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import PROTECT_S, Lab
from colo_ebpf.lab.topology import HOSTS
from colo_ebpf.lab.workload import until_serving

NAME = "colobench"
_POLL_S = 0.01
_SETTLES_S = 2.0  # what boots last ends


class Pair:
    """A lab whose pair is protected."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def client(self) -> Client:
        """Sockets of the lab's client."""
        return Client(self.lab.namespace_of("client"), self.lab.guest_address)

    def status(self, host: str) -> dict[str, Any]:
        """Of a daemon; BenchError if it does not answer."""
        status = self.lab.ask(host)
        if status is None:
            raise BenchError(f"the daemon of host {host} does not answer")
        return dict(status)

    def serving(self) -> str:
        """The host whose VM is the primary of the pair."""
        for host in HOSTS:
            if self.status(host)["state"] == "primary":
                return host
        raise BenchError("the pair is not protected")

    async def until(
        self, host: str, wanted: Callable[[dict[str, Any]], bool], what: str, limit_s: float = 60
    ) -> dict[str, Any]:
        """The first status of the host that is wanted; BenchError if none does in time."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            status = await asyncio.to_thread(self.lab.ask, host)
            if status is not None and wanted(status):
                return dict(status)
            await asyncio.sleep(_POLL_S)
        raise BenchError(f"host {host}: {what}: not within {limit_s:.0f} s")

    async def until_serving(self) -> None:
        """The guest has booted; what it does then is what clients ask for."""
        await until_serving(self.client())
        await asyncio.sleep(_SETTLES_S)

    async def until_protected(self) -> None:
        """Both daemons say so."""
        for host in HOSTS:
            await self.until(host, lambda s: bool(s["protected"]), "not protected", PROTECT_S)


@contextmanager
def protected(recorder: Recorder, name: str = NAME) -> Iterator[Pair]:
    """Build the lab, protect the pair; nothing is left when it ends."""
    lab = Lab(name, recorder.say)
    lab.up(choose(Wanted()))
    try:
        yield Pair(lab)
    finally:
        lab.down()
