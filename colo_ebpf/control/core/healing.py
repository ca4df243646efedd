# SPDX-License-Identifier: GPL-2.0-only
"""How long a VM has served without a replica, and what that time went into. Pure."""

from __future__ import annotations

import enum
from collections.abc import Set

from colo_ebpf.control.decision.actions import Decision, EnterColo, State, Synchronise

_S = 1_000_000_000


class Part(enum.Enum):
    """Of that time, in their order."""

    ALONE = "until PEER stood by"  # its host, its daemon, the merge of the overlays, rests
    FAILED = "attempts that failed"
    QEMU = "its QEMU"
    DISK = "disk"
    MEMORY = "memory"
    CHECKPOINTS = "checkpoints"


_OF_AN_ATTEMPT = (Part.QEMU, Part.DISK, Part.MEMORY, Part.CHECKPOINTS)


def part_of(d: Decision, done: Set[type]) -> Part | None:
    """What a decision is about; None: the VM does not serve alone. `done`: steps of the attempt."""
    if d.state is State.SOLO:
        return Part.ALONE
    if d.state is not State.PAIRING:
        return None
    if d.task is None or not d.task.instance:
        return Part.QEMU
    if Synchronise not in done:
        return Part.DISK
    return Part.MEMORY if EnterColo not in done else Part.CHECKPOINTS


class Healing:
    """Of one daemon. `last`: the sentence about the last time, "" if there was none."""

    def __init__(self) -> None:
        self.last = ""
        self._spent_ns: dict[Part, int] = {}
        self._part: Part | None = None
        self._since_ns = 0

    def look(self, d: Decision, done: Set[type], peer: str, now_ns: int) -> bool:
        """At each decision. True: the pair is protected now, and `last` is new."""
        part = part_of(d, done)
        if part is self._part:
            return False
        before, self._part = self._part, part
        if before is not None:
            self._spent_ns[before] = self._spent_ns.get(before, 0) + now_ns - self._since_ns
        self._since_ns = now_ns
        if part is Part.ALONE:
            self._attempt_failed()
        if part is not None:
            return False
        spent, self._spent_ns = self._spent_ns, {}
        if d.state is not State.PRIMARY or not spent:
            return False
        self.last = _sentence(spent, peer)
        return True

    def _attempt_failed(self) -> None:
        lost_ns = sum(self._spent_ns.pop(part, 0) for part in _OF_AN_ATTEMPT)
        if lost_ns:
            self._spent_ns[Part.FAILED] = self._spent_ns.get(Part.FAILED, 0) + lost_ns


def _sentence(spent_ns: dict[Part, int], peer: str) -> str:
    parts = [
        f"{spent_ns[part] / _S:.1f} s {part.value.replace('PEER', peer)}"
        for part in Part
        if part in spent_ns
    ]
    return f"protected after {sum(spent_ns.values()) / _S:.1f} s: {', '.join(parts)}"
