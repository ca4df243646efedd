# SPDX-License-Identifier: GPL-2.0-only
"""When time alone cannot change a decision: then a beat does without. Pure, but for `IdleDetector`.

Most of a pair's life nothing happens, and to decide that fifty times a second takes more processor
time than all else a daemon does. To wake takes the next most, so there are fewer beats then.
"""

from __future__ import annotations

from colo_ebpf.control.core.checkpoints import Checkpoints
from colo_ebpf.control.decision.actions import Decision, State
from colo_ebpf.control.decision.snapshot import Deadlines, Snapshot
from colo_ebpf.control.interfaces import Plane
from colo_ebpf.control.peer.state import PeerView

_SELDOM = 3  # a pair is at rest after more beats in a row that were left out


def lasts(s: Snapshot, d: Decision) -> bool:
    """`d`, which was decided on `s`, holds until an event comes or the peer falls silent.

    Of a protected pair that is well: there all other deadlines are those of the checkpoints. That
    its VM was loaded by halves is nothing a secondary's trace says before COLO has ended.
    """
    peer, vm = s.peer, s.vm
    nothing_due = d.step is None and d.ask is None and d.answer is None
    nothing_open = s.request is None and s.pending is None and s.failure is None
    return (
        d.state in (State.PRIMARY, State.SECONDARY)
        and nothing_due
        and nothing_open
        and not d.still
        and vm is not None
        and vm.fit  # else a load may heal it, and no event tells of that
        and vm.colo_exit_ns is None
        and vm.off_at_s is None
        and not s.link_cut
        and s.plane_hears
        and (peer.state is None or peer.state.hears)
        and peer.away_since_ns is None
    )


class IdleDetector:
    """What one core remembers of it. Every event ends it, mostly by the cycle that follows."""

    def __init__(
        self, checkpoints: Checkpoints, peer: PeerView, plane: Plane, timing: Deadlines
    ) -> None:
        self._checkpoints, self._peer, self._plane = checkpoints, peer, plane
        self._silence_ns, self._timing = timing.peer_timeout_ns, timing
        self._lasts = False
        self._until_ns = self._sure_until_ns = 0
        self._left_out = 0  # beats in a row

    def begins(self) -> None:
        """The last cycle has decided what lasts, and nothing is left to do."""
        self._lasts = True

    def ends(self) -> None:
        """A fact has changed."""
        self._lasts, self._left_out = False, 0
        self.sooner()

    def sooner(self) -> None:
        """There is something to do before what was the next time to look."""
        self._until_ns = self._sure_until_ns = 0

    def stands(self, now_ns: int) -> bool:
        """The last cycle has decided what lasts, and the peer has not fallen silent since."""
        return self._lasts and self._hears(now_ns)

    def _hears(self, now_ns: int) -> bool:
        self._peer.plane_heard_ns = self._plane.link_heard_ns()
        link = now_ns - self._peer.link_heard_ns <= self._silence_ns
        return link and self._peer.hears_plane(self._silence_ns, now_ns)

    def holds(self, now_ns: int) -> bool:
        """A cycle would do nothing now."""
        if now_ns >= self._until_ns:
            self._until_ns = self._checkpoints.quiet_until_ns(now_ns) if self._lasts else 0
            if now_ns >= self._until_ns:
                return False
        if not self._hears(now_ns):
            return False
        heard_ns = min(self._peer.link_heard_ns, self._peer.frames_until_ns)
        self._sure_until_ns = min(self._until_ns, heard_ns + self._silence_ns)
        return True

    def leaves_out(self, now_ns: int) -> bool:
        """This beat does without a cycle."""
        if not self.holds(now_ns):
            return False
        self._left_out += 1
        return True

    def next_beat_ns(self, last_ns: int) -> int:
        """When a beat is due after the one at `last_ns`.

        A daemon whose pair is at rest sleeps longer: its plane beats in between, and that says
        enough to whoever has heard the daemon lately (`PeerView.link_heard_ns`). It does not sleep
        through its peer's silence, nor through the time at which a held frame is overdue: a frame
        that nobody verifies is a client that waits.
        """
        sleeps = self._left_out > _SELDOM and self._plane.beats_alone
        due_ns = last_ns + (self._timing.rest_ns if sleeps else self._timing.heartbeat_ns)
        for sooner_ns in (self._sure_until_ns, self._checkpoints.due_ns or 0):
            if last_ns < sooner_ns < due_ns:
                due_ns = sooner_ns
        return due_ns
