# SPDX-License-Identifier: GPL-2.0-only
"""When this daemon itself did not run: then it could not hear its peer, and silence says nothing.

A host that has no processor to spare, or that stands for a second with the one beside it (two
guests of one machine), would else miss a peer that is well. Silence counts while the daemon runs.
So a daemon that is stopped again and again still finds that its peer is gone, only later.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

_REMEMBERED = 64


@dataclass(slots=True)
class Absence:
    """`rests_ns`: so long the daemon may sleep by itself."""

    rests_ns: int
    _runs_ns: int = 0  # when it ran last
    _gaps: deque[tuple[int, int]] = field(  # when each ended, and how long it was
        default_factory=lambda: deque(maxlen=_REMEMBERED)
    )

    def runs(self, now_ns: int) -> int:
        """The daemon runs now. So long it did not, beyond its rest."""
        gap_ns = now_ns - self._runs_ns - self.rests_ns if self._runs_ns else 0
        if gap_ns > 0:
            self._gaps.append((now_ns, gap_ns))
        self._runs_ns = now_ns
        return max(gap_ns, 0)

    def counted_from(self, since_ns: int) -> int:
        """A silence that began then, as if it had begun later by all that came in between."""
        if not self._gaps or self._gaps[-1][0] <= since_ns:
            return since_ns
        missed = (min(gap_ns, end_ns - since_ns) for end_ns, gap_ns in self._gaps)
        return since_ns + sum(ns for ns in missed if ns > 0)
