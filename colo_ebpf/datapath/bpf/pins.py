# SPDX-License-Identifier: GPL-2.0-only
"""What is pinned for a VM is open here as well: who removes a pin takes nothing away, and the pin
can be made again. Without it the next daemon would not find the maps of a VM that runs.
"""

from __future__ import annotations

import os
from pathlib import Path

from colo_ebpf.datapath.bpf import syscalls


class Pins:
    """The pinned objects in some directories, as they were when this was made."""

    def __init__(self, *directories: Path) -> None:
        self._fds: dict[Path, int] = {}
        for path in sorted(path for one in directories for path in one.iterdir()):
            if path.is_file():
                self._fds[path] = syscalls.obj_get(str(path))

    def lacking(self) -> list[Path]:
        """Those that somebody has removed."""
        there = {one: set(os.listdir(one)) if one.is_dir() else set() for one in self._where()}
        return [path for path in self._fds if path.name not in there[path.parent]]

    def _where(self) -> set[Path]:
        return {path.parent for path in self._fds}

    def restore(self) -> None:
        """Make those again. Raises DatapathError."""
        for path in self.lacking():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            syscalls.obj_pin(self._fds[path], str(path))

    def close(self) -> None:
        """What is pinned lives on."""
        while self._fds:
            os.close(self._fds.popitem()[1])
