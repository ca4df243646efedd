# SPDX-License-Identifier: GPL-2.0-only
"""Tests on a lab. One that was killed may have left its lab up: each begins with a clean one."""

from __future__ import annotations

import asyncio

from colo_ebpf.lab.client import Client
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.workload import LEDGER, PATIENCE_S


def clean(lab: Lab) -> Lab:
    """The lab, with nothing of its name left."""
    lab.down()
    return lab


async def until_serving(client: Client) -> None:
    """The guest accepts connections: it boots, and nobody tells."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                (await client.connect(LEDGER)).close()
                return
            except OSError:
                await asyncio.sleep(0.05)
