# SPDX-License-Identifier: GPL-2.0-only
"""Runs the operator's command that turns the other host off.

No shell, nothing on its input, five variables in its environment, its own process group. It says
by its exit code what became of it: 0 the peer is certainly off, 2 it cannot be fenced at all, all
else it failed. At the timeout the whole group is killed, and that is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import dataclass

from colo_ebpf.control.facts import Fence
from colo_ebpf.errors import CannotFenceError, FenceError

EXIT_OFF, EXIT_CANNOT = 0, 2
_TAIL_BYTES = 2048
_READ_BYTES = 1 << 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FenceCommand:
    """The command, of the configuration."""

    command: tuple[str, ...]
    timeout_ms: int
    vm: str
    host: str

    async def run(self, fence: Fence) -> None:
        """Returns if the peer is certainly off; raises FenceError, or CannotFenceError."""
        tail = _Tail()
        try:
            process = await self._start(fence, tail)
            try:
                async with asyncio.timeout(self.timeout_ms / 1000):
                    code = await process.wait()
            except TimeoutError as e:
                what = f"was killed after {self.timeout_ms} ms"
                raise FenceError(self._text(what, tail)) from e
            finally:
                await _end(process)
            self._judge(code, fence, tail)
        finally:
            tail.close()

    async def _start(self, fence: Fence, tail: _Tail) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=tail.write_fd,
                stderr=tail.write_fd,
                start_new_session=True,
                env={**os.environ, **self._environment(fence)},
            )
        except OSError as e:
            raise FenceError(f"{self.command[0]}: cannot be run: {e.strerror}") from e
        finally:
            tail.started()

    def _environment(self, fence: Fence) -> dict[str, str]:
        return {
            "COLO_VM": self.vm,
            "COLO_HOST": self.host,
            "COLO_PEER": fence.peer,
            "COLO_GENERATION": str(fence.generation),
            "COLO_REASON": fence.reason,
        }

    def _judge(self, code: int, fence: Fence, tail: _Tail) -> None:
        if code == EXIT_OFF:
            _log.info("%s", self._text(f"{fence.peer} is off", tail))
        elif code == EXIT_CANNOT:
            raise CannotFenceError(self._text(f"cannot fence {fence.peer}", tail))
        elif code < 0:
            raise FenceError(self._text(f"ended by signal {-code}", tail))
        else:
            raise FenceError(self._text(f"exit code {code}", tail))

    def _text(self, what: str, tail: _Tail) -> str:
        said = tail.text()
        return f"{self.command[0]}: {what}" + (f" ({said})" if said else "")


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
