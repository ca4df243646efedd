# SPDX-License-Identifier: GPL-2.0-only
"""Runs the operator's command that turns the other host off (`commands`), five variables in its
environment.

It says by its exit code what became of it: 0 the peer is certainly off, 2 it cannot be fenced at
all, all else it failed. At the timeout the whole group is killed, and that is a failure.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from colo_ebpf.control.decision.actions import Fence
from colo_ebpf.control.host import commands
from colo_ebpf.errors import CannotFenceError, FenceError

EXIT_OFF, EXIT_CANNOT = 0, 2
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
        try:
            ended = await commands.run(self.command, self._environment(fence), self.timeout_ms)
        except OSError as e:
            raise FenceError(f"{self.command[0]}: cannot be run: {e.strerror}") from e
        self._judge(ended.code, fence, ended.said)

    def _environment(self, fence: Fence) -> dict[str, str]:
        return {
            "COLO_VM": self.vm,
            "COLO_HOST": self.host,
            "COLO_PEER": fence.peer,
            "COLO_GENERATION": str(fence.generation),
            "COLO_REASON": fence.reason,
        }

    def _judge(self, code: int | None, fence: Fence, said: str) -> None:
        if code == EXIT_OFF:
            _log.info("%s", self._text(f"{fence.peer} is off", said))
        elif code == EXIT_CANNOT:
            raise CannotFenceError(self._text(f"cannot fence {fence.peer}", said))
        elif code is None:
            raise FenceError(self._text(f"was killed after {self.timeout_ms} ms", said))
        elif code < 0:
            raise FenceError(self._text(f"ended by signal {-code}", said))
        else:
            raise FenceError(self._text(f"exit code {code}", said))

    def _text(self, what: str, said: str) -> str:
        return f"{self.command[0]}: {what}" + (f" ({said})" if said else "")
