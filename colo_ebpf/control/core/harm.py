# SPDX-License-Identifier: GPL-2.0-only
"""What others did to the data plane's devices, programs and pins: what of it is left. Pure.

`repair` looks at them and puts back what can be put back.
"""

from __future__ import annotations

from collections.abc import Sequence

from colo_ebpf.model import Lack


class Harm:
    """What is not as it should be, as last looked at."""

    def __init__(self) -> None:
        self.lacks: tuple[Lack, ...] = ()

    @property
    def said(self) -> str:
        """In one sentence; "": nothing is lacking."""
        return "; ".join(one.what for one in self.lacks)

    @property
    def hopeless(self) -> str:
        """What cannot be put back under the VM that runs."""
        return "; ".join(one.what for one in self.lacks if one.hopeless)

    def hear(self, found: Sequence[Lack], left: Sequence[Lack]) -> list[str]:
        """The outcome of a look: what was found, what of it could not be put back. What is new."""
        known, self.lacks = self.lacks, tuple(left)
        new = [one.what for one in left if one not in known]
        return [*(f"{one.what}: put back" for one in found if one not in left), *new]
