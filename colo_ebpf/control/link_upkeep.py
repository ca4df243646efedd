# SPDX-License-Identifier: GPL-2.0-only
"""What seals a link is looked after, whichever way it is: one thing at a time, a rest after a
failure, a complaint once, and what the kernel has refused.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from colo_ebpf.datapath.net import xfrm
from colo_ebpf.errors import AttachError

_log = logging.getLogger(__name__)
LOOK_EVERY_NS = 5_000_000_000
AGAIN_NS = 1_000_000_000  # after a failure
What = TypeVar("What")


class LinkUpkeep(ABC, Generic[What]):
    """Of one VM. `subject` and `packets`: of the log's sentences."""

    def __init__(self, subject: str, packets: str) -> None:
        self._subject, self._packets = subject, packets
        self._look_due_ns = self._rest_until_ns = 0
        self._refused = self._begun = xfrm.refused()
        self._busy = False
        self._complained = ""

    def look_soon(self) -> None:
        """Somebody may have changed something."""
        self._look_due_ns = 0

    def rests(self, now_ns: int) -> bool:
        """Nothing can be begun now."""
        return self._busy or now_ns < self._rest_until_ns

    async def do(self, what: What | bool, now_ns: int) -> None:
        """What `due` said; True: a look."""
        self._busy = True
        try:
            if isinstance(what, bool):
                await self._look(now_ns)
            else:
                await self._carry_out(what, now_ns)
            self._complained = ""
        except AttachError as e:
            self._rest_until_ns = now_ns + AGAIN_NS
            self._complain(str(e))
        finally:
            self._busy = False

    @abstractmethod
    async def _look(self, now_ns: int) -> None:
        """Did somebody remove or change anything? AttachError."""

    @abstractmethod
    async def _carry_out(self, what: What, now_ns: int) -> None:
        """AttachError."""

    def _complain(self, error: str) -> None:
        if error != self._complained:
            self._complained = error
            _log.warning("%s: %s", self._subject, error)

    def _count(self) -> None:
        """What was refused since the last look is told, by what was wrong with it."""
        refused = xfrm.refused()
        new = {why: count - self._refused.get(why, 0) for why, count in refused.items()}
        self._refused = refused
        if told := ", ".join(f"{count} {why}" for why, count in new.items() if count > 0):
            _log.warning("the kernel has refused %s: %s", self._packets, told)

    def _refused_so_far(self) -> dict[str, int]:
        """Since the daemon's start, by what was wrong."""
        refused = {why: n - self._begun.get(why, 0) for why, n in self._refused.items()}
        return {why: count for why, count in refused.items() if count > 0}
