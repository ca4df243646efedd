# SPDX-License-Identifier: GPL-2.0-only
"""Something that is done again and again, by a timer of the loop.

A task that sleeps between would cost more processor time than all that a daemon's beat does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Ticker:
    """Calls `tick` now and then every `period_s`; one that is late is not made up for."""

    def __init__(self, period_s: float, tick: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._period_s, self._tick = period_s, tick
        self._due_s = self._loop.time()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.Handle = self._loop.call_soon(self._run)

    def _run(self) -> None:
        try:
            self._tick()
        except Exception as e:
            self.ended.set_exception(e)
            return
        if self.ended.done():
            return
        self._due_s = max(self._due_s + self._period_s, self._loop.time())
        self._timer = self._loop.call_at(self._due_s, self._run)

    def stop(self) -> None:
        """No more; `ended` is done, too, if it was not by an exception of the tick."""
        self._timer.cancel()
        if not self.ended.done():
            self.ended.set_result(None)
