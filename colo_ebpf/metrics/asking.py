# SPDX-License-Identifier: GPL-2.0-only
"""Asks daemons and arbiters, many at once, and waits for none of them for long.

There is one question to a daemon at a time: who comes while it is under way shares its answer. So
a daemon that hangs is asked once per timeout, however often others look here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from colo_ebpf import shared
from colo_ebpf.config.reading import load_config
from colo_ebpf.config.schema import Config
from colo_ebpf.control.admin import control_socket
from colo_ebpf.control.arbiter.factory import arbiter_of
from colo_ebpf.errors import ColoError, ConfigError, ControlError
from colo_ebpf.metrics.answers import Answer, Status, Target

ASK_S = 2.0
ARBITER_EVERY_S = 15.0
_REPLY_BYTES = 4 << 20
_log = logging.getLogger(__name__)


async def ask_status(path: str, timeout_s: float = ASK_S) -> Status:
    """The daemon's status; ControlError if it does not answer in time, or with something else."""
    try:
        async with asyncio.timeout(timeout_s):
            line = await _exchange(path)
    except TimeoutError as e:
        raise ControlError(f"the daemon on {path} does not answer within {timeout_s} s") from e
    except (FileNotFoundError, ConnectionRefusedError) as e:
        raise ControlError(f"no daemon answers on {path}: is it running?") from e
    except OSError as e:
        raise ControlError(f"{path}: {e.strerror or e}") from e
    except ValueError as e:
        raise ControlError(f"the daemon on {path} answers without an end") from e
    return _status(line, path)


async def _exchange(path: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path, limit=_REPLY_BYTES)
    try:
        writer.write(b'{"command": "status"}\n')
        await writer.drain()
        return await reader.readline()
    finally:
        writer.close()


def _status(line: bytes, path: str) -> Status:
    try:
        reply = json.loads(line)
        if "error" in reply:
            raise ControlError(f"the daemon on {path} says: {reply['error']}")
        return dict(reply["ok"])
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ControlError(f"what the daemon on {path} answers is no status") from e


class Watched:
    """One VM's daemon, and the arbiter of that VM as this host sees it."""

    def __init__(
        self,
        target: Target,
        read_record: Callable[[], Awaitable[object]],
        timeout_s: float = ASK_S,
    ) -> None:
        self.target = target
        self._read_record, self._timeout_s = read_record, timeout_s
        self._asked: asyncio.Task[Answer] | None = None
        self._arbiter_error: str | None = None
        self._arbiter_s = 0.0

    async def answer(self) -> Answer:
        """Of now, or of the question under way. Never raises ColoError."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._ask())
        found = await asyncio.shield(self._asked)
        return replace(found, arbiter_error=self._arbiter_error, arbiter_s=self._arbiter_s)

    async def _ask(self) -> Answer:
        begun = time.monotonic()
        try:
            status = await ask_status(self.target.socket, self._timeout_s)
        except ColoError as e:
            return Answer(self.target, None, str(e))
        return Answer(self.target, status, took_s=time.monotonic() - begun)

    async def look_at_arbiter(self) -> None:
        """Once; what fails is told when it begins to."""
        begun, error = time.monotonic(), ""
        try:
            await self._read_record()
        except ColoError as e:
            error = str(e)
        self._arbiter_s = time.monotonic() - begun
        if error and not self._arbiter_error:
            _log.warning("%s: the arbiter: %s", self.target.vm, error)
        self._arbiter_error = error

    async def keep_looking_at_arbiter(self, every_s: float = ARBITER_EVERY_S) -> None:
        """For as long as the process runs."""
        while True:
            await self.look_at_arbiter()
            await asyncio.sleep(every_s)


def watched(config: Config) -> Watched:
    """That of a configuration file."""
    socket = str(control_socket.path_in(config.host.run_dir))
    target = Target(config.vm.name, config.host.name, socket)
    return Watched(target, arbiter_of(config).read)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The configuration files: those named, and all `*.toml` of directories that are.

    Raises ConfigError for a directory without one.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in path.glob("*.toml") if file.name != shared.NAME)
        if not inside:
            raise ConfigError(f"{path}: no file in it ends in .toml; name one, or write one there")
        found += inside
    return found


def load_all(paths: Sequence[Path]) -> list[Config]:
    """The VMs of this host; ConfigError if a file is wrong or two are of one VM."""
    of: dict[str, Path] = {}
    configs = []
    for file in files_of(paths):
        config = load_config(file)
        if (other := of.setdefault(config.vm.name, file)) is not file:
            raise ConfigError(f"{file}: vm.name {config.vm.name!r} is that of {other} too")
        configs.append(config)
    return configs
