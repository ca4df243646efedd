# SPDX-License-Identifier: GPL-2.0-only
"""Is the SVM still working on an answer? What the secondary finds out for the primary. Pure.

The primary asks (`hold_timer`), with the processor time that the SVM may spend on the answer. From
then on the SVM's vCPUs are looked at every few milliseconds. One that was idle between two looks,
and waits for no disk, will say nothing more until it gets another input or a timer fires. One that
works may go on for as long as the answer is worth. Time in which the host's scheduler kept it
waiting for a processor is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MS = 1_000_000
EVERY_NS = 10 * _MS
_IDLE_SHARE = 8  # a guest's timer ticks take less than this part of a processor


@dataclass(frozen=True, slots=True)
class Work:
    """What the SVM's vCPUs have done so far.

    `ran_ns`: processor time of each, ever. `ready`: a thread of its QEMU wants to run or runs, or
    the guest waits for a disk.
    """

    ran_ns: Sequence[int] = ()
    ready: bool = False

    def since_ns(self, before: Work) -> int:
        """Of the vCPU that has worked most."""
        pairs = zip(self.ran_ns, before.ran_ns, strict=False)
        return max((now - then for now, then in pairs), default=0)


@dataclass(slots=True)
class Watch:
    """Of one secondary. Times are boot times in nanoseconds."""

    question: int = 0  # the primary's, that is watched for; 0: none
    spent: int = 0  # the last question for which waiting is in vain
    idle: bool = False  # for the SVM was idle; else it has worked for as long as it may
    due_ns: int | None = None  # when to look
    _worth_ns: int = 0
    _looked_ns: int = 0
    _first: Work = Work()
    _last: Work = Work()

    def news(self, question: int) -> bool:
        """The primary asks something else: `begin`."""
        return question not in (0, self.question)

    def begin(self, question: int, worth_ns: int, work: Work, now_ns: int) -> None:
        """Watch for it. Who waits for another answer by now has had the one before."""
        self.question, self._worth_ns = question, worth_ns
        self._first = self._last = work
        self._looked_ns, self.due_ns = now_ns, now_ns + EVERY_NS

    def end(self) -> None:
        """There is nobody to watch, or for nobody."""
        self.question, self.spent, self.idle, self.due_ns = 0, 0, False, None

    def look(self, work: Work, now_ns: int) -> None:
        """Call it when it is due."""
        idle_ns = (now_ns - self._looked_ns) // _IDLE_SHARE
        idle = not work.ready and work.since_ns(self._last) <= idle_ns
        if idle or work.since_ns(self._first) >= self._worth_ns:
            self.spent, self.idle, self.due_ns = self.question, idle, None
            return
        self._last, self._looked_ns, self.due_ns = work, now_ns, now_ns + EVERY_NS
