# SPDX-License-Identifier: GPL-2.0-only
"""Has the data plane look at its devices, and put back what others did to them (`core.harm`).

The kernel tells of most changes at once (`Plane.watch`); of the rest a look a few times a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from colo_ebpf.control.interfaces import Plane
from colo_ebpf.errors import DatapathError
from colo_ebpf.model import Lack

_AGAIN_S = 1.0  # while something cannot be put back


class Mender:
    """Looks when it is told to, and as long as something is lacking; one look at a time."""

    def __init__(
        self, plane: Plane, tell: Callable[[Sequence[Lack], Sequence[Lack]], None]
    ) -> None:
        self._plane, self._tell = plane, tell
        self._wanted = asyncio.Event()

    def look_soon(self) -> None:
        """Something may have been changed."""
        self._wanted.set()

    async def run(self) -> None:
        """For as long as the daemon runs."""
        self._plane.watch(self.look_soon)
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if await self._look():
                asyncio.get_running_loop().call_later(_AGAIN_S, self._wanted.set)

    async def _look(self) -> bool:
        """Is anything left?"""
        try:
            found, left = await self._plane.mend()
        except DatapathError as e:
            found = left = [Lack(f"the data plane's devices: {e}")]
        self._tell(found, left)
        return bool(left)
