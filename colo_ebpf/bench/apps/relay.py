# SPDX-License-Identifier: GPL-2.0-only
"""The program `relay` (`bench/native/relay.c`): one client in front of one or two servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from colo_ebpf.bench.apps import clients
from colo_ebpf.bench.apps.clients import Where
from colo_ebpf.bench.lanes import workload
from colo_ebpf.errors import BenchError

_PROGRAM = "relay"


@asynccontextmanager
async def relay(
    directory: Path, at: Where, ports: Sequence[int], servers: Sequence[str]
) -> AsyncIterator[None]:
    """It listens `at` its ports; the servers' addresses are reached from that namespace. The
    program is made in the directory. BenchError if it does not start."""
    await asyncio.to_thread(workload.build, directory, (_PROGRAM,))
    program, listed = str(directory / _PROGRAM), ",".join(map(str, ports))
    argv = (program, at.address, listed, *servers)
    async with clients.process(at, *argv, stdin=asyncio.subprocess.DEVNULL) as process:
        assert process.stdout is not None
        if await process.stdout.readline() != b"ready\n":
            _, said = await process.communicate()
            raise BenchError(f"the relay at {at.address} does not start: {said.decode().strip()}")
        yield
