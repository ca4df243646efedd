# SPDX-License-Identifier: GPL-2.0-only
"""Whether the two VMs say the same again, while checkpoints come as soon as output waits. Pure.

Every few checkpoints one is put off for a moment, as long as the SVM may need for an answer. If the
SVM then says all that was held, that checkpoint was not needed. After some such in a row comparing
is tried. If the SVM says something else, or nothing, the checkpoint is taken at once, and the next
is put off after twice as many.
"""

from __future__ import annotations

from dataclasses import dataclass

_REST_LEAST, _REST_MOST = 4, 64  # checkpoints from one that is put off in vain to the next
_ENOUGH = 3  # that were not needed, in a row
_LONGEST_NS = 150_000_000  # one is put off


@dataclass(slots=True)
class Probe:
    """Of one primary. Times are boot times in nanoseconds."""

    _rest: int = _REST_LEAST
    _left: int = _REST_LEAST  # checkpoints until one is put off
    _same: int = 0  # that were not needed, in a row
    _since_ns: int | None = None  # one is being put off
    _until_ns: int = 0

    @property
    def enough(self) -> bool:
        """The two VMs say the same again."""
        return self._same >= _ENOUGH

    def puts_off(self, oldest_ns: int | None, worth_ns: int, now_ns: int) -> bool:
        """A checkpoint is due. `oldest_ns`: when the oldest answer came that is held; None: there
        is none. `worth_ns`: how long the SVM may need for one.

        That a connection is accepted is the same in both VMs, whatever is said on it later.
        """
        if self._since_ns is None:
            if self._left > 0 or oldest_ns is None:
                return False
            self._since_ns, self._until_ns = now_ns, now_ns + min(worth_ns, _LONGEST_NS)
            return True
        if oldest_ns is None or oldest_ns > self._since_ns:
            self.cleared()
            return True
        if now_ns < self._until_ns:
            return True
        self.in_vain()
        return False

    def cleared(self) -> None:
        """Nothing is held any more of what was when the checkpoint was put off."""
        if self._since_ns is not None:
            self._since_ns = None
            self._same += 1

    def differs(self) -> bool:
        """The SVM has said something else. Returns whether a checkpoint is due that was put off."""
        self._until_ns = 0
        return self._since_ns is not None

    def in_vain(self) -> None:
        """Neither was needed: to put the checkpoint off, nor to compare."""
        self._same, self._since_ns = 0, None
        self._rest = min(2 * self._rest, _REST_MOST)
        self._left = self._rest

    def loaded(self) -> None:
        """A checkpoint came."""
        self._since_ns = None
        self._left -= 1
