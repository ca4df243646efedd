# SPDX-License-Identifier: GPL-2.0-only
"""The selector of the daemon's loop: what comes a hundred times a second it does by itself.

Beats and heartbeats mostly change nothing, and a round of asyncio's loop takes more processor time
than all that has to be done for one. So they are called from within `select`, which goes back to
the loop once one of them says that it may have left something to do there.

A beat that is nearly due does not wait if a heartbeat has just been read: one waking less. So the
beats of two daemons fall together, whichever is first, and none is ever later than it would be. One
that was late is not made up for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import select
import selectors
from collections.abc import Callable, Mapping
from typing import Any

from colo_ebpf.clock import boot_ns

_log = logging.getLogger(__name__)
_MOST_EVENTS = 16
_EARLY = 4  # so much of the time from one beat to the next, a quarter, may one come too soon

Work = Callable[[], bool]
Tick = Callable[[int], bool]


def loop_of(selector: BeatSelector) -> asyncio.AbstractEventLoop:
    """A loop that waits in it."""
    return asyncio.SelectorEventLoop(selector)


class BeatSelector(selectors.BaseSelector):
    """Calls are made in the loop's thread. They return True if there may be work for the loop."""

    def __init__(self) -> None:
        self._others = selectors.EpollSelector()
        self._poll = select.epoll()
        self._poll.register(self._others.fileno(), select.EPOLLIN)
        self._readers: dict[int, Work] = {}
        self._tick: Tick | None = None
        self._next: Callable[[int], int] = lambda last_ns: last_ns
        self._last_ns = 0
        self._ended: asyncio.Future[None] | None = None

    # -- beats and readers ------------------------------------------------------------------

    def beat(self, due_ns: Callable[[int], int], tick: Tick) -> asyncio.Future[None]:
        """Call `tick` with the boot time, now and then whenever `due_ns` says.

        That is given the time of the last beat, and asked whenever something may have changed. The
        future ends with the first exception, or with `rest`.
        """
        self._ended = asyncio.get_running_loop().create_future()
        self._tick, self._next, self._last_ns = tick, due_ns, 0
        return self._ended

    def rest(self) -> None:
        """No more beats."""
        self._tick = None
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
        now_ns = boot_ns()
        end_ns = math.inf if timeout is None else now_ns + timeout * 1e9
        while True:
            # epoll counts whole milliseconds, never too few
            until_ns = min(end_ns, self._due_ns())
            wait_s = None if until_ns == math.inf else max(until_ns - now_ns, 0.0) / 1e9
            events = self._poll.poll(wait_s, _MOST_EVENTS)
            wanted = others = heard = False
            if events:
                wanted, others = self._read(events)
                heard = len(events) > others
            now_ns = boot_ns()
            if self._is_due(now_ns, heard):
                wanted = self._beat(now_ns) or wanted
                now_ns = boot_ns()
            if others:
                return self._others.select(0)
            if wanted or now_ns >= end_ns:
                return []

    def _due_ns(self) -> float:
        if self._tick is None:
            return math.inf
        return self._next(self._last_ns) if self._last_ns else 0

    def _is_due(self, now_ns: int, heard: bool) -> bool:
        if self._tick is None:
            return False
        due_ns = self._due_ns()
        early_ns = (due_ns - self._last_ns) / _EARLY if heard else 0
        return now_ns >= due_ns - early_ns

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

    def _beat(self, now_ns: int) -> bool:
        assert self._tick is not None
        self._last_ns = now_ns
        try:
            return self._tick(now_ns)
        except Exception as e:
            self._tick = None
            if self._ended is not None and not self._ended.done():
                self._ended.set_exception(e)
            return True

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
