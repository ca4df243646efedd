# SPDX-License-Identifier: GPL-2.0-only
"""Whether a process has run lately: what has run need not be asked whether it hangs.

`/proc/PID/schedstat` (proc(5)) tells how long the main thread has run. To read it takes a tenth of
what an answer through QMP does, and QEMU's main thread seldom sleeps for long.
"""

from __future__ import annotations

import contextlib
from io import FileIO


class Ran:
    """Of the process `pid`, until `close`."""

    def __init__(self, pid: int) -> None:
        self._before = b""
        self._file: FileIO | None = None
        with contextlib.suppress(OSError):  # a kernel without CONFIG_SCHED_INFO: nothing is known
            self._file = FileIO(f"/proc/{pid}/schedstat")

    def since_last_look(self) -> bool:
        """It has. False: it has not, or nobody knows."""
        if self._file is None:
            return False
        try:
            self._file.seek(0)
            run = self._file.read(64).split(b" ", 1)[0]
        except OSError:  # ESRCH: gone
            return False
        before, self._before = self._before, run
        return run != before

    def close(self) -> None:
        """Nothing is known any more."""
        if self._file is not None:
            self._file.close()
            self._file = None
