# SPDX-License-Identifier: GPL-2.0-only
"""Long work on disks in a thread, which is told when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """What it returns or raises. The event is set when the caller is cancelled; a thread that does
    not end then keeps the daemon from ending."""
    stopped = threading.Event()
    try:
        return await asyncio.to_thread(work, stopped)
    finally:
        stopped.set()
