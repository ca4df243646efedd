# SPDX-License-Identifier: GPL-2.0-only
"""What a planted fault is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """Replace `old`, which occurs once in `file`, by `new`; `killer` must then fail.

    `file`: of the C sources, below `bpf/`; or of the control plane, from `colo_ebpf/` on.
    """

    name: str
    file: str
    old: str
    new: str
    killer: str

    @property
    def python(self) -> bool:
        """It is not of the C sources."""
        return self.file.startswith("colo_ebpf/")

    @property
    def path(self) -> str:
        """Of the file, from the top of the tree."""
        return self.file if self.python else f"bpf/{self.file}"
