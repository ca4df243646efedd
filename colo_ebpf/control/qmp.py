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

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError, Runstate

from colo_ebpf.clock import boot_ns
from colo_ebpf.errors import QmpError
from colo_ebpf.model import VmEvent, VmEventKind

_KINDS = {kind.value: kind for kind in VmEventKind}
_log = logging.getLogger(__name__)


class Monitors:
    """Both monitors of one QEMU. Every command has a deadline and fails as QmpError."""

    def __init__(self, label: str, timeout_ms: int, on_event: Callable[[VmEvent], None]) -> None:
        self._label = label
        self._timeout_ms = timeout_ms
        self._on_event = on_event
        self._main = QMPClient(f"{label}")
        self._oob = QMPClient(f"{label}-oob")
        self._watch: asyncio.Task[None] | None = None
        listener = EventListener(event_filter=self._filter)
        self._main.register_listener(listener)

    def _filter(self, message: Mapping[str, Any]) -> bool:
        """Called for each event as it is parsed; nothing is queued."""
        kind = _KINDS.get(str(message["event"]))
        if kind is not None:
            data = dict(message.get("data", {})) | {"at_s": message["timestamp"]["seconds"]}
            self._on_event(VmEvent(kind, boot_ns(), data))
        return False

    async def connect(self, main: Path, oob: Path) -> None:
        """Connect to both sockets."""
        for client, path in ((self._main, main), (self._oob, oob)):
            try:
                async with asyncio.timeout(self._timeout_ms / 1000):
                    await client.connect(str(path))
            except (QMPError, OSError, TimeoutError) as e:
                raise QmpError(f"{self._label}: connect to monitor {path}: {e!r}") from e
        self._watch = asyncio.create_task(self._watch_main())

    async def _watch_main(self) -> None:
        """Listeners fall silent when the link dies: tell so."""
        while self._main.runstate != Runstate.DISCONNECTING:
            await self._main.runstate_changed()
        self._on_event(VmEvent(VmEventKind.MONITOR_LOST, boot_ns()))

    async def close(self) -> None:
        """Leave both monitors; QEMU runs on."""
        if self._watch:
            self._watch.cancel()
        for client in (self._main, self._oob):
            with contextlib.suppress(Exception):
                async with asyncio.timeout(self._timeout_ms / 1000):
                    await client.disconnect()

    async def run(self, command: str, timeout_ms: int | None = None, /, **arguments: Any) -> Any:
        """Execute in band; underscores in argument names become dashes."""
        return await self._execute(self._main, command, arguments, timeout_ms, oob=False)

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
            if isinstance(e, asyncio.CancelledError) and not client.runstate == (
                Runstate.DISCONNECTING
            ):
                raise
            raise QmpError(f"{self._label}: {command}: monitor lost: {e!r}") from e
