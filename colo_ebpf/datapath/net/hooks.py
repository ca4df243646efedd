# SPDX-License-Identifier: GPL-2.0-only
"""Where on a device a program runs: told in one way for both ways to attach it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Hook(enum.Enum):
    """Of a device, as the host sees it."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Order(enum.IntEnum):
    """Among our own programs on a hook: they run in this order."""

    BEFORE = -1
    MAIN = 0
    AFTER = 1


class By(enum.Enum):
    """What holds our programs on their hooks."""

    TCX = "tcx"  # bpf_links
    CLSACT = "clsact"  # filters of that qdisc


@dataclass(frozen=True, slots=True)
class Filter:
    """One program on one hook. `pin`: the name of its link; bpffs allows no dots in it."""

    device: str
    pin: str
    hook: Hook
    program: str
    order: Order = Order.MAIN

    def __str__(self) -> str:
        return f"{self.device} {self.hook.value}"

    @property
    def runs_first(self) -> bool:
        """Nearest to the device, also before others' programs: what comes in meets it first."""
        return self.order is Order.BEFORE or (
            self.order is Order.MAIN and self.hook is Hook.INGRESS
        )
