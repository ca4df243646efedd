# SPDX-License-Identifier: GPL-2.0-only
"""Lanes in turn, each under one load after the other, several times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from colo_ebpf.bench.apps.lane import Lane, Measured
from colo_ebpf.bench.apps.loads import Load
from colo_ebpf.errors import ColoError

_STARTS = 2  # that may fail one after the other before a lane's turn is over


@dataclass
class Found:
    """Of one load in one lane: its readings, in order; and why there are no more, or none."""

    readings: list[Measured] = field(default_factory=list)
    broke: str = ""
    left_out: str = ""

    @property
    def wanted(self) -> bool:
        """Whether there are to be more readings."""
        return not self.broke and not self.left_out


Key = tuple[str, str]  # lane, load
Told = Callable[[str, Load, Measured | str], None]


@dataclass
class Rounds:
    """What was measured so far. A load that broke a lane is not put on it again: that is its
    result, and the lane is built anew for the next load."""

    told: Told
    say: Callable[[str], None]
    found: dict[Key, Found] = field(default_factory=dict)

    def leave_out(self, name: str, load: Load, why: str) -> None:
        """This lane is not put under this load."""
        self._of(name, load).left_out = why
        self.say(f"{name}: {load.key}: {why}")

    async def turn(self, name: str, lane: Lane, loads: Sequence[Load], seconds: float) -> None:
        """All loads once, in one lane."""
        left = [load for load in loads if self._of(name, load).wanted]
        failed = 0
        while left and failed < _STARTS:
            self.say(f"{name}: starts")
            try:
                async with lane.running():
                    failed = 0
                    await self._loads(name, lane, left, seconds)
            except ColoError as e:
                failed += 1
                if failed == _STARTS:
                    self._all_broke(name, left, f"the lane does not start: {e}")

    async def _loads(self, name: str, lane: Lane, left: list[Load], seconds: float) -> None:
        """Until none is left or one broke the lane."""
        while left:
            load = left.pop(0)
            try:
                measured = await lane.measure(load, max(seconds, load.least_s))
            except ColoError as e:
                self._of(name, load).broke = first_line(e)
                self.told(name, load, first_line(e))
                return
            self._of(name, load).readings.append(measured)
            self.told(name, load, measured)

    def _of(self, name: str, load: Load) -> Found:
        return self.found.setdefault((name, load.key), Found())

    def _all_broke(self, name: str, loads: Sequence[Load], why: str) -> None:
        for load in loads:
            self._of(name, load).broke = why.partition("\n")[0]
            self.told(name, load, why)


def first_line(error: Exception) -> str:
    """What went wrong, without a log's tail."""
    return str(error).partition("\n")[0]
