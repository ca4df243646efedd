# SPDX-License-Identifier: GPL-2.0-only
"""The control socket: one line of JSON in, one line of JSON out, on `<run_dir>/ctl.sock`.

Requests: ``{"command": name, ...}``, with the words that the command takes. Answers:
``{"ok": value}`` or ``{"error": text}``. Only root may connect.

``lend`` opens the VM's images for reading until ``take-back`` on the same connection, or its end:
see `lending`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from colo_ebpf.clock import boot_ns
from colo_ebpf.control import operations
from colo_ebpf.control.epoch import Reason
from colo_ebpf.control.lending import Lending
from colo_ebpf.control.report import history, paused, planned
from colo_ebpf.errors import ColoError, ControlError
from colo_ebpf.model import PlaneEvent

if TYPE_CHECKING:
    from colo_ebpf.control.daemon import Daemon

_LINE_BYTES = 65536
_REPLY_BYTES = 4 << 20


class ControlServer:
    """Answers while the daemon runs."""

    def __init__(self, daemon: Daemon, path: Path) -> None:
        self._daemon, self._path = daemon, path
        self._server: asyncio.Server | None = None
        self._lending = Lending(lambda: daemon.core)
        self._commands: dict[str, Callable[[], Any]] = {
            "status": daemon.status,
            "checkpoint": self._checkpoint,
            "mismatches": self._mismatches,
            "history": lambda: history(daemon, boot_ns()),
            "switchover": self._switchover,
            "start": lambda: {"token": operations.start(daemon.core, boot_ns())},
            "planned": lambda: planned(daemon),
            "pause": lambda: self._pause(True),
            "resume": lambda: self._pause(False),
        }
        self._of_generation: dict[str, Callable[[int], Any]] = {
            "may-fail-over": self._may_fail_over,
            "failover": self._failover,
        }

    async def start(self) -> None:
        """Listen; a socket file left by a run that was killed is replaced."""
        self._path.unlink(missing_ok=True)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, str(self._path), limit=_LINE_BYTES
            )
            self._path.chmod(0o600)
        except OSError as e:
            raise ControlError(f"control socket {self._path}: {e.strerror}") from e

    async def stop(self) -> None:
        """Close and remove the socket."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                while line := await self._line(reader):
                    answer = await self._answer(line, writer)
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
        finally:
            writer.close()
            await self._lending.leave(writer)

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except ValueError:  # longer than any request
            return b""

    async def _answer(self, line: bytes, asker: object) -> dict[str, Any]:
        lending = {"lend": self._lending.lend, "take-back": self._lending.take_back}
        try:
            request = json.loads(line)
            name = request["command"]
            known = name in self._commands or name in lending or name in self._of_generation
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known:
            names = ", ".join((*self._commands, *lending, *self._of_generation))
            return {"error": f'expected {{"command": one of {names}}}'}
        try:
            if name in lending:
                return {"ok": await lending[name](asker)}
            if name in self._of_generation:
                return {"ok": self._of_generation[name](_generation(request))}
            return {"ok": self._commands[name]()}
        except ColoError as e:
            return {"error": str(e)}

    def _checkpoint(self) -> dict[str, Any]:
        core = self._daemon.core
        if not core.checkpointing:
            raise ControlError(
                f"no checkpoint can be taken here: {core.decision.sentence}; ask the primary"
            )
        now_ns = boot_ns()
        core.checkpoints.primary.ask(Reason.OPERATOR, now_ns)
        core.cycle(now_ns)
        return {"asked": True, "epoch": core.checkpoints.primary.epoch}

    def _switchover(self) -> dict[str, Any]:
        return {"token": operations.switch_over(self._daemon.core, boot_ns())}

    def _may_fail_over(self, generation: int) -> dict[str, Any]:
        question = operations.question(self._daemon.core, generation, boot_ns())
        return {"question": question}

    def _failover(self, generation: int) -> dict[str, Any]:
        return {"token": operations.fail_over(self._daemon.core, generation, boot_ns())}

    def _pause(self, on: bool) -> dict[str, Any]:
        operations.pause(self._daemon.core, on, boot_ns())
        return paused(self._daemon, boot_ns())

    def _mismatches(self) -> list[dict[str, Any]]:
        return [_mismatch(event) for event in self._daemon.plane.mismatches()]


def _generation(request: dict[str, Any]) -> int:
    value = request.get("generation")
    if not isinstance(value, int) or value < 1:
        raise ControlError("name the generation that is overridden: `arbiter show` prints it")
    return value


def _mismatch(event: PlaneEvent) -> dict[str, Any]:
    return {
        "at_ns": event.at_ns,
        "kind": event.kind.name.lower(),
        "epoch": event.epoch,
        "flow": event.flow,
        "offset": event.offset,
        "pvm_digest": f"{event.pvm_digest:016x}",
        "svm_digest": f"{event.svm_digest:016x}",
        "reason": event.reason,
    }


class Conversation:
    """Requests to a running daemon over one connection. ControlError if it says no, or nothing."""

    def __init__(self, path: Path, timeout_s: float = 5.0) -> None:
        self._path, self._timeout_s = path, timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)

    def __enter__(self) -> Self:
        with self._wrapped():
            self._socket.connect(str(self._path))
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, command: str, **words: int) -> Any:
        """One request."""
        request = {"command": command, **words}
        with self._wrapped():
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            reply = _reply(self._socket)
        if "error" in reply:
            raise ControlError(str(reply["error"]))
        return reply["ok"]

    @contextlib.contextmanager
    def _wrapped(self) -> Iterator[None]:
        path = self._path
        try:
            yield
        except (FileNotFoundError, ConnectionRefusedError) as e:
            text = f"no daemon answers on {path}: is it running, is [host] right?"
            raise ControlError(text) from e
        except TimeoutError as e:
            text = f"the daemon on {path} does not answer within {self._timeout_s} s"
            raise ControlError(text) from e
        except OSError as e:
            raise ControlError(f"{path}: {e.strerror}") from e


def ask(path: Path, command: str, timeout_s: float = 5.0, **words: int) -> Any:
    """One request to a running daemon; ControlError if it does not run or says no."""
    with Conversation(path, timeout_s) as conversation:
        return conversation.ask(command, **words)


def _reply(s: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n") and len(data) < _REPLY_BYTES:
        part = s.recv(65536)
        if not part:
            break
        data += part
    try:
        return dict(json.loads(data))
    except ValueError as e:
        raise ControlError(f"the daemon's answer is cut short ({len(data)} bytes)") from e
