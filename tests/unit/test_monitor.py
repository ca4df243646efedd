# SPDX-License-Identifier: GPL-2.0-only
"""The monitors of a QEMU that ends, or is itself no more: no traceback, whoever notices first."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.control.qemu.monitor import Monitors
from colo_ebpf.errors import QmpError
from colo_ebpf.model import VmEvent, VmEventKind

_ASKED_BYTES = 1 << 10
_GREETING = {"QMP": {"version": {"qemu": {"major": 7}, "package": ""}, "capabilities": ["oob"]}}


class _Monitor:
    """Greets, agrees on capabilities, and answers nothing else."""

    def __init__(self) -> None:
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, path: Path) -> asyncio.Server:
        return await asyncio.start_unix_server(self._greet, path)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._say(writer, _GREETING)
        await reader.read(_ASKED_BYTES)
        self._say(writer, {"return": {}})

    def _say(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        writer.write(json.dumps(message).encode() + b"\n")

    def die(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def rave(self) -> None:
        for writer in self._writers:
            writer.write(b'{"event": ' + b"[" * 5000 + b"\n")


@pytest.mark.parametrize("end", [_Monitor.die, _Monitor.rave], ids=["dies", "raves"])
@pytest.mark.parametrize("asks", [False, True])
def test_a_qemu_that_is_lost_leaves_no_traceback(
    tmp_path: Path, asks: bool, end: Callable[[_Monitor], None]
) -> None:
    unforeseen: list[dict[str, Any]] = []
    events: list[VmEvent] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, found: unforeseen.append(found))
        qemu, lost = _Monitor(), asyncio.Event()

        def on_event(event: VmEvent) -> None:
            events.append(event)
            lost.set()

        servers = [await qemu.serve(tmp_path / name) for name in ("main", "oob")]
        monitors = Monitors("v", 5_000, on_event)
        await monitors.connect(tmp_path / "main", tmp_path / "oob")
        asked = asyncio.create_task(monitors.run("query-status")) if asks else None
        await asyncio.sleep(0)
        end(qemu)
        await lost.wait()
        if asked is not None:
            with pytest.raises(QmpError, match="monitor lost"):
                await asked
        await monitors.close()
        with pytest.raises(QmpError):
            await monitors.run_oob("query-yank")
        for server in servers:
            server.close()
        del monitors, asked
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(scenario())
    gc.collect()
    assert [event.kind for event in events] == [VmEventKind.MONITOR_LOST]
    assert [str(found["message"]) for found in unforeseen] == []


class _Early(_Monitor):
    """Says an event before it greets, as QEMU may while it starts; `times`: on so many
    connections."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.times:
            self.times -= 1
            stamp = {"seconds": 1, "microseconds": 0}
            self._say(writer, {"event": "RESUME", "data": {}, "timestamp": stamp})
        await super()._greet(reader, writer)


async def _connected(directory: Path, qemu: _Monitor) -> None:
    main, oob = directory / "main", directory / "oob"
    for path in (main, oob):
        await qemu.serve(path)
    monitors = Monitors("qemu", 5_000, lambda event: None)
    try:
        await monitors.connect(main, oob)
    finally:
        await monitors.close()
        qemu.die()


async def test_an_event_before_the_greeting_is_no_end(tmp_path: Path) -> None:
    await _connected(tmp_path, _Early(1))


async def test_what_never_greets_is_no_qemu(tmp_path: Path) -> None:
    with pytest.raises(QmpError, match=r"qemu: connect to monitor .*main: .*Greeting"):
        await _connected(tmp_path, _Early(1000))
