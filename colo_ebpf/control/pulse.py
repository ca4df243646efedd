# SPDX-License-Identifier: GPL-2.0-only
"""The selector of the daemon's loop: what comes a hundred times a second it does by itself.

Beats and heartbeats mostly change nothing, and a round of asyncio's loop takes more processor time
than all that has to be done for one. So they are called from within `select`, which goes back to
the loop once one of them says that it may have left something to do there.

A beat that is nearly due does not wait if a heartbeat has just been read: one waking less. So the
beats of two daemons fall together, whichever is first, and none is ever later than it would be.
"""

from __future__ import annotations

import asyncio
import logging
import math
import select
import selectors
import time
from collections.abc import Callable, Mapping
from typing import Any

_log = logging.getLogger(__name__)
_MOST_EVENTS = 16
_EARLY = 1 / 4  # of the period: so much before it is due a beat may join what woke us

Work = Callable[[], bool]


def loop_of(pulse: Pulse) -> asyncio.AbstractEventLoop:
    """A loop that waits in it."""
    return asyncio.SelectorEventLoop(pulse)


class Pulse(selectors.BaseSelector):
    """Calls are made in the loop's thread. They return True if there may be work for the loop."""

    def __init__(self) -> None:
        self._others = selectors.EpollSelector()
        self._poll = select.epoll()
        self._poll.register(self._others.fileno(), select.EPOLLIN)
        self._readers: dict[int, Work] = {}
        self._tick: Work | None = None
        self._due_s, self._period_s = math.inf, 0.0
        self._wish_s = math.inf
        self._ended: asyncio.Future[None] | None = None

    # -- beats and readers ------------------------------------------------------------------

    def beat(self, period_s: float, tick: Work) -> asyncio.Future[None]:
        """Call it now and then every `period_s`; one that is late is not made up for.

        The future ends with the first exception, or with `rest`.
        """
        self._ended = asyncio.get_running_loop().create_future()
        self._tick, self._period_s, self._due_s = tick, period_s, time.monotonic()
        return self._ended

    def hasten(self, wait_s: float) -> None:
        """There is a beat in so long, whatever others come before; those after it follow it."""
        if self._due_s < math.inf:  # else it rests
            self._wish_s = min(self._wish_s, time.monotonic() + wait_s)

    def rest(self) -> None:
        """No more beats."""
        self._due_s = self._wish_s = math.inf
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def listen(self, fd: int, read: Work) -> None:
        """Call it while something can be read there."""
        self._readers[fd] = read
        self._poll.register(fd, select.EPOLLIN)

    def ignore(self, fd: int) -> None:
        """The end of `listen`, before the descriptor is closed."""
        if self._readers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # -- what the loop asks for ---------------------------------------------------------------

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Until the loop has something to do: at the latest after `timeout` seconds."""
        now_s = time.monotonic()
        end_s = math.inf if timeout is None else now_s + timeout
        while True:
            # epoll counts whole milliseconds, never too few
            until_s = min(end_s, self._due_s, self._wish_s)
            wait_s = None if until_s == math.inf else max(until_s - now_s, 0.0)
            events = self._poll.poll(wait_s, _MOST_EVENTS)
            wanted = others = heard = False
            if events:
                wanted, others = self._read(events)
                heard = len(events) > others
            now_s = time.monotonic()
            early_s = self._period_s * _EARLY if heard else 0.0
            if now_s >= self._due_s - early_s or now_s >= self._wish_s:
                wanted = self._beat() or wanted
                now_s = time.monotonic()
            if others:
                return self._others.select(0)
            if wanted or now_s >= end_s:
                return []

    def _read(self, events: list[tuple[int, int]]) -> tuple[bool, bool]:
        """May the loop have work? Do its own descriptors?"""
        wanted = others = False
        for fd, _ in events:
            read = self._readers.get(fd)
            if read is None:  # a reader may have ended another one
                others = others or fd == self._others.fileno()
                continue
            try:
                wanted = read() or wanted
            except Exception:
                _log.exception("reading a heartbeat failed in an unforeseen way")
        return wanted, others

    def _beat(self) -> bool:
        assert self._tick is not None
        now_s = time.monotonic()
        self._due_s = min(self._due_s, now_s) + self._period_s
        if self._wish_s <= now_s:
            self._wish_s = math.inf
        try:
            wanted = self._tick()
        except Exception as e:
            self._due_s = self._wish_s = math.inf
            if self._ended is not None and not self._ended.done():
                self._ended.set_exception(e)
            return True
        self._due_s = max(self._due_s, time.monotonic())
        return wanted

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Of the loop's own."""
        return self._others.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Of the loop's own."""
        return self._others.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Of the loop's own."""
        return self._others.modify(fileobj, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Of the loop's own."""
        return self._others.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Of the loop's own."""
        return self._others.get_map()

    def close(self) -> None:
        """Let go of both descriptors."""
        self._poll.close()
        self._others.close()
