# SPDX-License-Identifier: GPL-2.0-only
"""Changes of state, handed to a process beside the daemon that runs the operator's command.

To start a process takes time, and may take for ever if its program lies on a server that hangs. So
the daemon starts one helper (`event_helper`) before it serves, and later only writes lines into a
pipe, which it never waits for.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import colo_ebpf

_WHY_CHARACTERS = 500  # a line stays below PIPE_BUF: it is written whole or not at all
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """Of this daemon's state."""

    old: str
    new: str
    why: str
    generation: int


class Events:
    """Of one VM on one host. Without a command nothing is told."""

    def __init__(
        self, command: tuple[str, ...], timeout_ms: int, vm: str, host: str, peer: str
    ) -> None:
        self._command, self._timeout_ms = command, timeout_ms
        self._names = {"COLO_VM": vm, "COLO_HOST": host, "COLO_PEER": peer}
        self._fd: int | None = None
        self._lost = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the helper; a failure is logged, for nothing depends on it."""
        if not self._command:
            return
        read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        vm, host = self._names["COLO_VM"], self._names["COLO_HOST"]
        helper = (sys.executable, "-m", "colo_ebpf.control.host.event_helper", vm, host)
        try:
            self._process = subprocess.Popen(
                [*helper, str(self._timeout_ms), *self._command],
                stdin=read_fd,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                cwd=Path(colo_ebpf.__file__).parents[1],  # the same code as ours
            )
        except OSError as e:
            os.close(write_fd)
            _log.warning("changes of state are not told: %s: %s", sys.executable, e.strerror)
        else:
            self._fd = write_fd
        finally:
            os.close(read_fd)

    def tell(self, change: Change) -> None:
        """Never waits; what the helper does not take is lost, and that is logged."""
        if self._fd is None:
            return
        try:
            os.write(self._fd, self._line(change))
        except BlockingIOError:
            self._lost += 1
            if self._lost == 1:
                _log.warning("changes of state are not told: their helper takes no more")
        except OSError:
            self.end()
            _log.warning(
                "changes of state are not told any more: their helper has ended; a restart of "
                "the daemon starts another one"
            )
        else:
            self._lost = 0

    def _line(self, change: Change) -> bytes:
        said = {
            **self._names,
            "COLO_OLD": change.old,
            "COLO_NEW": change.new,
            "COLO_WHY": change.why[:_WHY_CHARACTERS],
            "COLO_GENERATION": str(change.generation),
        }
        return json.dumps(said, ensure_ascii=False).encode(errors="replace") + b"\n"

    def end(self) -> None:
        """The helper tells what it has been given, and ends."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
