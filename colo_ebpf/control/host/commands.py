# SPDX-License-Identifier: GPL-2.0-only
"""Runs a command of the operator's: no shell, nothing on its input, its own session, and an end.

At the timeout, or if it is given up, its whole process group is killed. What it says is kept, the
end of it. It inherits no descriptor but those, and no real-time priority.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TAIL_BYTES = 2048
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """`code`: its exit code, negative for a signal; None: it was killed at the timeout. `said`: the
    end of what it printed, on one line."""

    code: int | None
    said: str


async def run(command: Sequence[str], environment: Mapping[str, str], timeout_ms: int) -> Outcome:
    """`environment` beside our own. OSError or ValueError if it cannot be started."""
    tail = _Tail()
    try:
        process = await _start(command, environment, tail)
        code: int | None = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_ms / 1000):
                    code = await process.wait()
        finally:
            await _end(process)
        return Outcome(code, tail.text())
    finally:
        tail.close()


async def _start(
    command: Sequence[str], environment: Mapping[str, str], tail: _Tail
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=tail.write_fd,
            stderr=tail.write_fd,
            start_new_session=True,
            env={**os.environ, **environment},
        )
    finally:
        tail.started()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the group if the command has not ended by itself."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


class _Tail:
    """The end of what the command says. A pipe that is read as it fills, and never waited for:
    what the command leaves running may keep it open."""

    def __init__(self) -> None:
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._kept = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read_fd, self._read)

    def started(self) -> None:
        """The command has its own copy of the end it writes to."""
        os.close(self.write_fd)

    def _read(self) -> None:
        try:
            data = os.read(self._read_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._read_fd)
        self._kept = (self._kept + data)[-_TAIL_BYTES:]

    def text(self) -> str:
        """On one line."""
        self._read()
        return " ".join(self._kept.decode(errors="replace").split())

    def close(self) -> None:
        """Reads no more."""
        self._loop.remove_reader(self._read_fd)
        os.close(self._read_fd)
