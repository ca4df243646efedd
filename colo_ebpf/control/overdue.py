# SPDX-License-Identifier: GPL-2.0-only
"""When the oldest held frame has waited so long that only a checkpoint can help. Pure.

Frames leave about in the order in which they came. While those before it still leave, the SVM is
behind but comes along: nothing differs, and a checkpoint would stop both VMs for that. A frame that
has become the oldest and stays it is the one the SVM does not send: for half the timeout, or for
half as long as the SVM was behind by then, and for the time it takes to send all the others that
wait, for it may send them first.
"""

from __future__ import annotations

from dataclasses import dataclass

_LONGEST = 20  # timeouts: an SVM that falls ever further behind is put level again

_EACH_NS = 25_000  # for an SVM that has a processor to itself: 40,000 answers a second


@dataclass(slots=True)
class Overdue:
    """Of one primary. Times are boot times in nanoseconds."""

    timeout_ns: int
    due_ns: int | None  # when to look; None: at the next frame that is held
    _oldest_ns: int = 0  # none is older, since
    _since_ns: int = 0

    def first(self, now_ns: int) -> None:
        """A frame is held, and none was before."""
        self._oldest_ns = self._since_ns = self.due_ns = now_ns

    def none(self) -> None:
        """Nothing is held."""
        self.due_ns = None

    def look(self, oldest_ns: int, frames: int, now_ns: int) -> bool:
        """A checkpoint is due. `oldest_ns`: when the oldest of the held frames came."""
        if oldest_ns > self._oldest_ns:
            self._oldest_ns, self._since_ns = oldest_ns, now_ns
        behind_ns = self._since_ns - self._oldest_ns
        rest_ns = max(self.timeout_ns, behind_ns) // 2 + frames * _EACH_NS
        stays_ns = self._since_ns + rest_ns
        latest_ns = oldest_ns + _LONGEST * self.timeout_ns
        due_ns = max(oldest_ns + self.timeout_ns, min(stays_ns, latest_ns))
        late = now_ns >= due_ns
        self.due_ns = now_ns + self.timeout_ns if late else due_ns
        return late
