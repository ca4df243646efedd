# SPDX-License-Identifier: GPL-2.0-only
"""The two VMs of lane twins with one client, whose every answer waits for both of them.

A client of a pair that waits for its answer before it asks again can have about as much: the slower
of two VMs has to have given it, too, and what the first VM writes has to be on both disks. A relay
between them does nothing but wait. It is a process, and what that costs makes the figures lower.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from colo_ebpf.bench.apps.clients import Where
from colo_ebpf.bench.apps.lane import Measured
from colo_ebpf.bench.apps.lane_twins import TwinsLane
from colo_ebpf.bench.apps.loads import Load
from colo_ebpf.bench.apps.relay import relay
from colo_ebpf.lab import topology
from colo_ebpf.lab.topology import CLIENT_ADDRESS, HOSTS, Guest, client_namespace
from colo_ebpf.lab.workload import DICE

_PORTS = (80, 5432, 6379, DICE)


class LockstepLane:
    """Twins behind a relay; or one of them."""

    def __init__(self, name: str, guest: Guest, hosts: Sequence[str] = HOSTS) -> None:
        self._name = name
        self._twins = TwinsLane(name, guest, hosts, replicated=len(hosts) > 1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The VMs have booted, and the relay listens where the client is."""
        directory = topology.directory(self._name)
        servers = [where.address for where in self._twins.wheres]
        async with self._twins.running(), relay(directory, self.where, _PORTS, servers):
            yield

    async def measure(self, load: Load, seconds: float) -> Measured:
        """The one client's."""
        return Measured(await load.run(self.where, seconds))

    @property
    def where(self) -> Where:
        """The relay."""
        return Where(client_namespace(self._name), CLIENT_ADDRESS)

    @property
    def direct(self) -> Where:
        """The first VM, past the relay."""
        return self._twins.wheres[0]
