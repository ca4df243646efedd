# SPDX-License-Identifier: GPL-2.0-only
"""Copy what a bitmap marks beside the guest, in rounds, as a migration does the memory.

Each round copies what was written during the one before. When little is left the VM may stand
while that is copied (`resync.py`). The bitmap of the replica goes on all the while: if a copy
breaks off, the next one begins with all that it marks. Where there is no such bitmap the first
round copies what is unlike.

The daemon carries the bytes itself (`carrier.py`). A job of QEMU would fail the guest's writes with
the peer: see `resync.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Protocol

from colo_ebpf.control.qemu.bitmaps import Bitmaps, round_of
from colo_ebpf.errors import QmpError
from colo_ebpf.model import Endpoints, Progress

_log = logging.getLogger(__name__)

CHANGES, UNLIKE = "changes of the disk", "unlike parts of the disk"

OnProgress = Callable[[Progress], None]


class Way(Protocol):
    """How the bytes get to the peer."""

    async def carry(self, bitmap: str, to: Endpoints, progress: OnProgress) -> None:
        """Copy what it marks; it marks nothing more. Raises StorageError, VmError, QmpError."""

    async def take_digests(self, to: Endpoints, *, wanted: bool) -> bool:
        """Digests of the peer's images as they are can be compared with, if they are wanted. This
        is asked before anything is written there, and once: then they are used up."""

    async def carry_unlike(self, to: Endpoints, progress: OnProgress) -> bool:
        """Copy what has another digest there. False: no digests come. Raises StorageError."""

    async def end(self) -> None:
        """Let go of the bitmap that a daemon before this one may have been about to copy."""


class Rounds:
    """Of all disks of one QEMU."""

    def __init__(self, instance: str, bitmaps: Bitmaps, way: Way) -> None:
        self._instance, self._bitmaps, self._way = instance, bitmaps, way

    async def forget(self) -> None:
        """What is left of a copy that broke off. QmpError, VmError: it cannot be removed."""
        if await self._bitmaps.in_rounds():
            await self._way.end()
            await self._bitmaps.drop_rounds()

    async def run(self, base: str, to: Endpoints, few_bytes: int, progress: OnProgress) -> str:
        """The bitmap of what is left, few bytes. "": the guest writes as fast as they are copied,
        or QEMU cannot do it. Raises StorageError or VmError if the peer is lost."""
        try:
            await self._bitmaps.begin_rounds(base)
            marked = await self._bitmaps.marked_bytes(round_of(0))
            await self._carry(0, to, progress)
            return await self._until_few(marked, to, few_bytes, progress)
        except QmpError as e:
            _log.warning("%s: cannot copy only what has changed: %s", self._instance, e)
            return ""

    async def unlike(self, to: Endpoints, few_bytes: int, progress: OnProgress) -> str:
        """The same, after the first round has copied what has other digests."""
        try:
            await self._bitmaps.begin((round_of(1),))
            if not await self._way.carry_unlike(to, progress):
                return ""
            return await self._until_few(math.inf, to, few_bytes, progress)
        except QmpError as e:
            _log.warning("%s: cannot copy only what is unlike: %s", self._instance, e)
            return ""

    async def _carry(self, number: int, to: Endpoints, progress: OnProgress) -> None:
        await self._way.carry(round_of(number), to, progress)
        await self._bitmaps.drop(round_of(number))

    async def _until_few(
        self, before: float, to: Endpoints, few_bytes: int, progress: OnProgress
    ) -> str:
        """`before`: bytes of the round that was copied."""
        number = 1
        while True:
            left = await self._bitmaps.marked_bytes(round_of(number))
            _log.info("%s: %d bytes changed meanwhile", self._instance, left)
            if left <= few_bytes:
                return round_of(number)
            if left >= before:
                return ""
            await self._bitmaps.next_round(number)
            await self._carry(number, to, progress)
            number, before = number + 1, left
