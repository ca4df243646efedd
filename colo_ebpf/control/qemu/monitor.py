# SPDX-License-Identifier: GPL-2.0-only
"""Two monitors of one QEMU through qemu.qmp: one for commands and events, one out of band.

Events are handed over as they are parsed, in one order with the replies of the same monitor:
when a reply is seen, every event QEMU sent before it has been handed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.qmp_client import GreetingError

from colo_ebpf.clock import boot_ns
from colo_ebpf.errors import QmpError
from colo_ebpf.model import VmEvent, VmEventKind

_KINDS = {kind.value: kind for kind in VmEventKind}
_log = logging.getLogger(__name__)


async def _meet(client: QMPClient, path: Path) -> None:
    """A QEMU that starts may say an event before it greets: the next connection it greets."""
    try:
        await client.connect(str(path))
    except ConnectError as e:
        if not isinstance(e.exc, GreetingError):
            raise
        await client.connect(str(path))


class Monitors:
    """Both monitors of one QEMU. Every command has a deadline and fails as QmpError."""

    def __init__(self, label: str, timeout_ms: int, on_event: Callable[[VmEvent], None]) -> None:
        self._label = label
        self._timeout_ms = timeout_ms
        self._on_event = on_event
        self._main = QMPClient(f"{label}")
        self._oob = QMPClient(f"{label}-oob")
        self._watches: dict[QMPClient, asyncio.Task[None]] = {}
        listener = EventListener(event_filter=self._filter)
        self._main.register_listener(listener)

    def _filter(self, message: Mapping[str, Any]) -> bool:
        """Called for each event as it is parsed; nothing is queued."""
        kind = _KINDS.get(str(message["event"]))
        if kind is not None:
            data, stamp = message.get("data", {}), message.get("timestamp", {})
            if isinstance(data, dict) and isinstance(stamp, dict):
                self._on_event(VmEvent(kind, boot_ns(), data | {"at_s": stamp.get("seconds", 0)}))
        return False

    async def connect(self, main: Path, oob: Path, *, timeout_ms: int | None = None) -> None:
        """Connect to both sockets. Raises QmpError if one cannot be reached."""
        limit = timeout_ms or self._timeout_ms
        for client, path in ((self._main, main), (self._oob, oob)):
            try:
                async with asyncio.timeout(limit / 1000):
                    await _meet(client, path)
            except (QMPError, OSError, TimeoutError) as e:
                raise QmpError(f"{self._label}: connect to monitor {path}: {e!r}") from e
        for client in (self._main, self._oob):
            self._watches[client] = asyncio.create_task(self._watch(client))

    async def _watch(self, client: QMPClient) -> None:
        """Listeners fall silent when the link dies: tell so.

        What qemu.qmp raises then is taken: asyncio tells of what nobody took with a traceback.
        """
        while client.runstate != Runstate.DISCONNECTING:
            await client.runstate_changed()
        if client is self._main:
            self._on_event(VmEvent(VmEventKind.MONITOR_LOST, boot_ns()))
        await self._leave(client)

    async def _leave(self, client: QMPClient) -> None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self._timeout_ms / 1000):
                await client.disconnect()

    async def close(self) -> None:
        """Leave both monitors; QEMU runs on."""
        for client in (self._main, self._oob):
            watch = self._watches.get(client)
            if watch is not None and client.runstate != Runstate.DISCONNECTING:
                watch.cancel()  # it ends because we leave: no news
            await self._leave(client)
        await asyncio.gather(*self._watches.values(), return_exceptions=True)

    async def run(self, command: str, timeout_ms: int | None = None, /, **arguments: Any) -> Any:
        """Execute in band; underscores in argument names become dashes."""
        return await self._execute(self._main, command, arguments, timeout_ms, oob=False)

    async def ensure(self, command: str, **arguments: Any) -> None:
        """Execute what may be done already: a refusal is logged and nothing else."""
        try:
            await self.run(command, **arguments)
        except QmpError as e:
            _log.info("not needed or already done: %s", e)

    async def give(self, name: str, fd: int) -> None:
        """QEMU gets a copy of a descriptor, under that name, for the next command that names it."""
        try:
            self._main.send_fd_scm(fd)
        except (QMPError, OSError, AssertionError) as e:
            raise QmpError(f"{self._label}: pass a descriptor: {e!r}") from e
        await self.run("getfd", fdname=name)

    async def run_oob(
        self, command: str, timeout_ms: int | None = None, /, **arguments: Any
    ) -> Any:
        """Execute out of band: answered even while the main loop is stuck."""
        return await self._execute(self._oob, command, arguments, timeout_ms, oob=True)

    async def _execute(
        self,
        client: QMPClient,
        command: str,
        arguments: Mapping[str, Any],
        timeout_ms: int | None,
        *,
        oob: bool,
    ) -> Any:
        plain = {name.replace("_", "-"): value for name, value in arguments.items()}
        limit = timeout_ms or self._timeout_ms
        try:
            async with asyncio.timeout(limit / 1000):
                return await client.execute(command, plain, oob=oob)
        except ExecuteError as e:
            raise QmpError(f"{self._label}: {command}: QEMU says: {e}") from e
        except TimeoutError as e:
            raise QmpError(f"{self._label}: {command}: no answer within {limit} ms") from e
        except (QMPError, OSError, asyncio.CancelledError) as e:
            lost = client.runstate in (Runstate.DISCONNECTING, Runstate.IDLE)
            if isinstance(e, asyncio.CancelledError) and not lost:
                raise
            raise QmpError(f"{self._label}: {command}: monitor lost: {e!r}") from e
