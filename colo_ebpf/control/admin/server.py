# SPDX-License-Identifier: GPL-2.0-only
"""The daemon's end of the control socket; `control_socket` says what is spoken there.

The kernel says who asks (SO_PEERCRED). Root may do everything. Members of the group `colo-ebpf`, if
there is one, may look; of them a few at a time, and not faster than the daemon can bear.

``lend`` opens the VM's images for reading until ``take-back`` on the same connection, or its end:
see `image_export`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colo_ebpf.clock import boot_ns
from colo_ebpf.control.admin import operations
from colo_ebpf.control.admin.image_export import ImageExport
from colo_ebpf.control.admin.status import Parts, checkpoint_news, history, paused, planned
from colo_ebpf.control.checkpoint.primary import Cause
from colo_ebpf.control.host import access
from colo_ebpf.control.peer.pause import LAST_S, MOST_WHY_BYTES
from colo_ebpf.errors import ColoError, ControlError, VmError
from colo_ebpf.model import PlaneEvent

_LINE_BYTES = 65536
GROUP = "colo-ebpf"
LOOKS = ("status", "history", "mismatches", "checkpoint-news", "planned")
_LOOKERS = 16
_LOOKER_S = 10.0  # for its next request, and to take an answer
_BETWEEN_S = 0.05  # answers to one of them
_log = logging.getLogger(__name__)


class ControlServer:
    """Answers while the daemon runs."""

    def __init__(self, daemon: Parts, path: Path) -> None:
        self._daemon, self._path = daemon, path
        self._server: asyncio.Server | None = None
        self._lookers = 0
        self._lending = ImageExport(lambda: daemon.core)
        self._commands: dict[str, Callable[[], Any]] = {
            "status": daemon.status,
            "checkpoint": self._checkpoint,
            "checkpoint-news": lambda: checkpoint_news(daemon, boot_ns()),
            "mismatches": self._mismatches,
            "history": lambda: history(daemon, boot_ns()),
            "may-switch-over": self._may_switch_over,
            "switchover": self._switchover,
            "start": lambda: {"token": operations.start(daemon.core, boot_ns())},
            "planned": lambda: planned(daemon),
            "resume": lambda: self._paused(False),
        }
        self._of_words: dict[str, Callable[[dict[str, Any]], Any]] = {
            "pause": self._pause,
            "samples": self._samples,
        }
        self._of_generation: dict[str, Callable[[int], Any]] = {
            "may-fail-over": self._may_fail_over,
            "failover": self._failover,
        }

    async def start(self) -> None:
        """Listen; a socket file left by a run that was killed is replaced.

        Raises ControlError if the socket cannot be made.
        """
        self._path.unlink(missing_ok=True)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, str(self._path), limit=_LINE_BYTES
            )
            self._path.chmod(0o600)
        except OSError as e:
            raise ControlError(f"control socket {self._path}: {e.strerror}") from e
        try:
            await asyncio.to_thread(access.grant_group, self._path, GROUP)
        except VmError as e:
            _log.warning("only root can look at this daemon: %s", e)

    async def stop(self) -> None:
        """Close and remove the socket."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = _uid_of(writer)
        try:
            with contextlib.suppress(ConnectionError, TimeoutError):
                if uid in (0, os.geteuid()):
                    await self._serve_root(reader, writer)
                else:
                    await self._serve_looker(reader, writer, uid)
        finally:
            writer.close()
            await self._lending.leave(writer)

    async def _serve_root(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await self._line(reader):
            await _say(writer, await self._answer(line, writer))

    async def _serve_looker(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int
    ) -> None:
        if self._lookers >= _LOOKERS:
            await _say(writer, {"error": f"{_LOOKERS} look at this daemon already: try again"})
            return
        self._lookers += 1
        try:
            while line := await self._line_in_time(reader):
                name = _command(line)
                answer = (
                    await self._answer(line, writer)
                    if name in LOOKS
                    else {"error": f"{name or 'that'}: only root may; uid {uid} may look: {LOOKS}"}
                )
                async with asyncio.timeout(_LOOKER_S):
                    await _say(writer, answer)
                await asyncio.sleep(_BETWEEN_S)
        finally:
            self._lookers -= 1

    async def _line_in_time(self, reader: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(_LOOKER_S):
            return await self._line(reader)

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
            known = any(
                name in those
                for those in (self._commands, lending, self._of_generation, self._of_words)
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known:
            names = ", ".join((*self._commands, *lending, *self._of_generation, *self._of_words))
            return {"error": f'expected {{"command": one of {names}}}'}
        try:
            if name in lending:
                return {"ok": await lending[name](asker)}
            if name in self._of_generation:
                return {"ok": self._of_generation[name](_generation(request))}
            if name in self._of_words:
                return {"ok": self._of_words[name](request)}
            return {"ok": self._commands[name]()}
        except ColoError as e:
            return {"error": str(e)}

    def _checkpoint(self) -> dict[str, Any]:
        core = self._daemon.core
        if not core.checkpointing:
            raise ControlError(
                f"no checkpoint can be taken here: {core.decision.sentence}; ask the primary"
            )
        now_ns, epoch = boot_ns(), core.checkpoints.primary.epoch
        core.checkpoints.primary.ask(Cause.OPERATOR, now_ns)
        core.cycle(now_ns)
        return {"at_ns": now_ns, "epoch": epoch}

    def _may_switch_over(self) -> dict[str, Any]:
        return {"question": operations.switchover_question(self._daemon.core, boot_ns())}

    def _switchover(self) -> dict[str, Any]:
        return {"token": operations.switch_over(self._daemon.core, boot_ns())}

    def _may_fail_over(self, generation: int) -> dict[str, Any]:
        question = operations.question(self._daemon.core, generation, boot_ns())
        return {"question": question}

    def _failover(self, generation: int) -> dict[str, Any]:
        return {"token": operations.fail_over(self._daemon.core, generation, boot_ns())}

    def _pause(self, request: dict[str, Any]) -> dict[str, Any]:
        until_s, why = request.get("until_s", 0), request.get("why", "")
        if type(until_s) is not int or not 0 <= until_s <= LAST_S:
            raise ControlError("until_s: seconds of Unix time, before the year 10000")
        if not _is_line(why):
            raise ControlError(f"why: one line of at most {MOST_WHY_BYTES} bytes")
        if until_s and until_s <= time.time():
            raise ControlError("that time is over already")
        return self._paused(True, until_s, why)

    def _samples(self, request: dict[str, Any]) -> dict[str, Any]:
        after = request.get("after", 0)
        if type(after) is not int or after < 0:
            raise ControlError("after: the number of a sample")
        return self._daemon.samples.after(after)

    def _paused(self, on: bool, until_s: int = 0, why: str = "") -> dict[str, Any]:
        operations.pause(self._daemon.core, on, boot_ns(), until_s, why)
        return paused(self._daemon, boot_ns())

    def _mismatches(self) -> list[dict[str, Any]]:
        return [_mismatch(event) for event in self._daemon.plane.mismatches()]


def _is_line(why: object) -> bool:
    """A lone surrogate, which no file takes, is not printable either."""
    return isinstance(why, str) and why.isprintable() and len(why.encode()) <= MOST_WHY_BYTES


async def _say(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")
    await writer.drain()


def _uid_of(writer: asyncio.StreamWriter) -> int:
    """Of the process that connected, as the kernel has it."""
    asker = writer.get_extra_info("socket")
    found = asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", found)[1])


def _command(line: bytes) -> str:
    """What is asked for ("": nothing that can be read)."""
    try:
        return str(json.loads(line)["command"])[:40]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


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
