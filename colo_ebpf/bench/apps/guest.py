# SPDX-License-Identifier: GPL-2.0-only
"""The guest with real servers: which image, which accelerator, and when it serves."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from colo_ebpf.control.qemu import accel
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.guest import APPS, BUILT, Wanted, choose
from colo_ebpf.lab.topology import Guest

QEMU = "qemu-system-x86_64"
_SERVES_S, _POLL_S = 300.0, 0.05
_SERVING = b"colo-guest: serving"


async def find() -> Guest:
    """The accelerator is found out once, not in every lane. LabError if it is not built."""
    guest = choose(Wanted(name=APPS))
    chosen, _ = await accel.choose("auto", QEMU, guest.kernel, BUILT / APPS)
    return replace(guest, accel=chosen)


async def until_serving(run_dir: Path) -> None:
    """Its console says that all servers accept. BenchError if it does not in time."""
    deadline, serial = time.monotonic() + _SERVES_S, run_dir / "serial.log"
    while not serial.exists() or _SERVING not in serial.read_bytes():
        if time.monotonic() > deadline:
            raise BenchError(f"the guest does not serve within {_SERVES_S:.0f} s: see {serial}")
        await asyncio.sleep(_POLL_S)
