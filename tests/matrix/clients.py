# SPDX-License-Identifier: GPL-2.0-only
"""The clients of the matrix: one ledger connection through all rows, and more when it is busy.

They live on an event loop in a thread of their own, so that rows can be told one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

from colo_ebpf.lab.client import Client
from colo_ebpf.lab.demo import Wire
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import HOSTS
from colo_ebpf.lab.workload import PATIENCE_S, Datagrams, Dice, Download, Ledger, until_serving

_DOWNLOAD_BYTES, _PACE_BYTES_S = 2 << 20, 1 << 20


class Clients:
    """Start with `begin`; `load` is what a row adds."""

    def __init__(self, lab: Lab) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="clients")
        self._thread.start()
        self._client = Client(lab.namespace_of("client"), lab.guest_address)
        self.ledger, self.dice = Ledger(self._client), Dice(self._client)
        self.wires: dict[str, Wire] = {}
        self._stop = asyncio.Event()
        self._writing: Future[None] | None = None

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(4 * PATIENCE_S)

    def begin(self) -> None:
        """The guest serves, the ledger is open."""
        self._run(self._begin())
        self._write()

    def _write(self) -> None:
        self._writing = asyncio.run_coroutine_threadsafe(self.ledger.run(self._stop), self._loop)

    def lose(self) -> None:
        """The guest has died with its connections: nobody waits for them any longer."""
        self._writing = None
        self._run(self._lose())

    async def _lose(self) -> None:
        await self._cancel()
        if self.ledger.lines is not None:
            self.ledger.lines.close()

    async def _cancel(self) -> None:
        """Whatever the clients still do."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def again(self) -> None:
        """A guest that was started again: it has every entry, its memory is a new one."""
        self._run(until_serving(self._client))
        self.dice.seen.clear()
        self._write()

    async def _begin(self) -> None:
        await until_serving(self._client)
        self.wires = {host: Wire(self._client, f"{host}0") for host in HOSTS}

    def load(self) -> Load:
        """More work, until it is told to end."""
        return self._run(self._load())  # type: ignore[no-any-return]

    async def _load(self) -> Load:
        return Load(self._client, self.dice)

    def finish(self, load: Load) -> list[str]:
        """What the row's clients complain of."""
        return self._run(load.finish())  # type: ignore[no-any-return]

    def roll(self) -> None:
        """One roll of the dice, remembered until the end."""
        self._run(self.dice.roll())

    def check_writer(self) -> None:
        """Raise what ended the ledger, if something did."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def serving(self, since: float) -> list[str]:
        """Hosts in the order in which their VM has spoken to the clients since then."""
        return [host for host, _, _ in self.turns(since)]

    def turns(self, since: float) -> list[tuple[str, int, int]]:
        """The same, each with its first and last frame in ms since then."""
        frames = sorted((t, host) for host in HOSTS for t in self.wires[host].at if t > since)
        found: list[tuple[str, int, int]] = []
        for t, host in frames:
            ms = int((t - since) * 1000)
            first_ms = found.pop()[1] if found and found[-1][0] == host else ms
            found.append((host, first_ms, ms))
        return found

    def silent_s(self) -> float:
        """How long no VM has said anything."""
        last = max((wire.at[-1] for wire in self.wires.values() if wire.at), default=0.0)
        return time.monotonic() - last

    def end(self) -> list[str]:
        """Everything that was ever acknowledged or seen is there, on the same connection."""
        try:
            return self._run(self._end())  # type: ignore[no-any-return]
        finally:
            self._run(self._cancel())  # of a row that failed
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> list[str]:
        self._stop.set()
        if self._writing is not None:
            await asyncio.wrap_future(self._writing)
            await self.ledger.recheck()
            await self.dice.recheck()
        for wire in self.wires.values():
            wire.close()
        return [*self.ledger.wrong, *self.dice.wrong]


class Load:
    """A download, dice and pings."""

    def __init__(self, client: Client, dice: Dice) -> None:
        self._stop = asyncio.Event()
        self._download = Download(client, _DOWNLOAD_BYTES, _PACE_BYTES_S)
        self._pings = [Datagrams(client, kind) for kind in ("icmp", "udp")]
        jobs = [self._download.run(), dice.run(self._stop)]
        jobs += [one.run(self._stop) for one in self._pings]
        self._work = [asyncio.create_task(job) for job in jobs]

    async def finish(self) -> list[str]:
        """Wait for the download, end the rest; returns complaints."""
        with contextlib.suppress(Exception):  # said below
            await self._work[0]
        self._stop.set()
        results = await asyncio.gather(*self._work, return_exceptions=True)
        wrong = [repr(r) for r in results if isinstance(r, BaseException)]
        if not self._download.ok:
            wrong.append("the download is not what it should be")
        return wrong + [w for one in self._pings for w in one.wrong]
