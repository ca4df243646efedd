# SPDX-License-Identifier: GPL-2.0-only
"""Protection paused by an operator: the VM does not change hosts, and no pair is begun.

Both daemons keep the newest word, and repeat it to each other: it may be said on either host, and
outlives restarts of both.
"""

from __future__ import annotations

import datetime
from typing import Annotated

import msgspec

LAST_S = 253_402_300_799  # of the year 9999, the last that a calendar here has
MOST_WHY_BYTES = 200  # of UTF-8: it is in each heartbeat, and escaped in the file


class Pause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest word of an operator; each is numbered above those before.

    `until_s`: of the clock that hosts share (Unix time), when it ends by itself; 0: it does not.
    """

    number: int = 0
    on: bool = False
    until_s: Annotated[int, msgspec.Meta(ge=0, le=LAST_S)] = 0
    why: str = ""

    def newer_than(self, other: Pause) -> bool:
        """Of two that were said at the same time, on hosts that did not hear each other: on."""
        return self._rank() > other._rank()

    def _rank(self) -> tuple[int, bool, bool, int, str]:
        return self.number, self.on, not self.until_s, self.until_s, self.why

    def over(self, wall_s: float) -> bool:
        """Its time is up. Both hosts see that by their own clock, and say the same word."""
        return self.on and 0 < self.until_s <= wall_s

    def next(self, on: bool, until_s: int = 0, why: str = "") -> Pause:
        """The word after this one; this one, if it says the same."""
        said = Pause(self.number, on, until_s if on else 0, why if on else "")
        return self if said == self else msgspec.structs.replace(said, number=self.number + 1)

    def sentence(self) -> str:
        """For the history."""
        if not self.on:
            return "protection is resumed"
        end = f" until {_time(self.until_s)}" if self.until_s else ""
        return f"protection is paused{end}" + (f": {self.why}" if self.why else "")


def _time(at_s: int) -> str:
    at = datetime.datetime.fromtimestamp(at_s, datetime.UTC)
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
