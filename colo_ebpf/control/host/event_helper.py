# SPDX-License-Identifier: GPL-2.0-only
"""The helper of `state_events`: JSON lines in, the operator's command run with each as environment.

    python -m colo_ebpf.control.host.event_helper VM HOST TIMEOUT_MS COMMAND...

One command at a time, each with its timeout. Of what comes meanwhile the newest are kept. When the
daemon has gone, what is left has one timeout together. Failures are logged when they begin.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections import deque
from collections.abc import Sequence

from colo_ebpf.control.host import commands, journal

MOST_WAITING = 16
_LINE_BYTES = 1 << 16
_NICE = 10
_log = logging.getLogger(__name__)


class Teller:
    """Runs the command for each change, in order."""

    def __init__(self, command: Sequence[str], timeout_ms: int) -> None:
        self._command, self._timeout_ms = command, timeout_ms
        self._waiting: deque[dict[str, str]] = deque(maxlen=MOST_WAITING)
        self._news = asyncio.Event()
        self._fails = self._ended = False

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Until the input ends."""
        work = asyncio.create_task(self._work())
        while line := await reader.readline():
            self._take(json.loads(line))
        self._ended = True
        self._news.set()
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                await work
        except TimeoutError:
            _log.warning("notify.command: the daemon has ended, what was left is not told")

    def _take(self, change: dict[str, str]) -> None:
        if len(self._waiting) == MOST_WAITING:
            lost = self._waiting[0]
            _log.warning(
                "notify.command takes too long: the change from %s to %s is not told",
                lost["COLO_OLD"],
                lost["COLO_NEW"],
            )
        self._waiting.append(change)
        self._news.set()

    async def _work(self) -> None:
        while self._waiting or not self._ended:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                await self._tell(self._waiting.popleft())

    async def _tell(self, change: dict[str, str]) -> None:
        clean = {name: value.replace("\0", " ") for name, value in change.items()}
        try:
            ended = await commands.run(self._command, clean, self._timeout_ms)
        except OSError as e:
            self._failed(f"cannot be run: {e.strerror}")
            return
        if ended.code == 0:
            if self._fails:
                _log.info("notify.command %s works again", self._command[0])
            self._fails = False
            return
        killed = f"was killed after {self._timeout_ms} ms"
        what = killed if ended.code is None else f"exit code {ended.code}"
        self._failed(what + (f" ({ended.said})" if ended.said else ""))

    def _failed(self, what: str) -> None:
        if not self._fails:
            _log.warning(
                "notify.command %s: %s; further failures are not logged", self._command[0], what
            )
        self._fails = True


async def _main(timeout_ms: int, command: Sequence[str]) -> None:
    reader = asyncio.StreamReader(limit=_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await Teller(command, timeout_ms).run(reader)


def main() -> None:
    """Entry point."""
    vm, host, timeout_ms, *command = sys.argv[1:]
    os.chdir("/")
    os.nice(_NICE)
    journal.begin(COLO_VM=vm, COLO_HOST=host)
    asyncio.run(_main(int(timeout_ms), command))


if __name__ == "__main__":
    main()
