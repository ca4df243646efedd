# SPDX-License-Identifier: GPL-2.0-only
"""The control socket: one line of JSON in, one line of JSON out, on `<run_dir>/ctl.sock`.

Requests: ``{"command": "status" | "checkpoint" | "mismatches"}``. Answers: ``{"ok": value}`` or
``{"error": text}``. Only root may connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colo_ebpf.clock import boot_ns
from colo_ebpf.control.epoch import Reason
from colo_ebpf.errors import ControlError
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
        self._commands: dict[str, Callable[[], Any]] = {
            "status": daemon.status,
            "checkpoint": self._checkpoint,
            "mismatches": self._mismatches,
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
        with contextlib.suppress(ConnectionError):
            while line := await self._line(reader):
                writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readline()
        except ValueError:  # longer than any request
            return b""

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            command = self._commands[request["command"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            known = ", ".join(self._commands)
            return {"error": f'expected {{"command": one of {known}}}'}
        try:
            return {"ok": command()}
        except ControlError as e:
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

    def _mismatches(self) -> list[dict[str, Any]]:
        return [_mismatch(event) for event in self._daemon.plane.mismatches()]


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


def ask(path: Path, command: str, timeout_s: float = 5.0) -> Any:
    """One request to a running daemon; ControlError if it does not run or says no."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(timeout_s)
            s.connect(str(path))
            s.sendall(json.dumps({"command": command}).encode() + b"\n")
            reply = _reply(s)
    except (FileNotFoundError, ConnectionRefusedError) as e:
        raise ControlError(f"no daemon answers on {path}: is it running, is [host] right?") from e
    except TimeoutError as e:
        raise ControlError(f"the daemon on {path} does not answer within {timeout_s} s") from e
    except OSError as e:
        raise ControlError(f"{path}: {e.strerror}") from e
    if "error" in reply:
        raise ControlError(str(reply["error"]))
    return reply["ok"]


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
