# SPDX-License-Identifier: GPL-2.0-only
"""What waits at the primary, and when it costs a checkpoint: `hold_timer`, `pace` over the plane.

In either way the data plane compares; what both VMs have said leaves at once. The way says only
what is done about the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from colo_ebpf.control.checkpoint.hold_timer import IDLE, OVERTAKEN, Patience, Told
from colo_ebpf.control.checkpoint.pace import Bound, Cycle, Gather, Pace, Way
from colo_ebpf.control.checkpoint.primary import Cause, Loaded
from colo_ebpf.control.decision.snapshot import Deadlines
from colo_ebpf.control.interfaces import Plane
from colo_ebpf.model import Waiting

_STEADY_NS = 30_000_000  # between looks while traffic flows and nothing in it is late
_STEADY_LOOKS = 2  # that found nothing late: then it flows

# Of these the way to take checkpoints as soon as output waits is not told: what they complain of
# leaves with the next checkpoint anyway.
COVERED = frozenset({Cause.MISMATCH, Cause.SVM_RESET, Cause.GAP})
_DIFFERS = COVERED | {Cause.MISSED_INPUT, Cause.EPOCH_AHEAD}


@dataclass(slots=True)
class _Before:
    """At the last load: the data plane's sums, and when it was."""

    at_ns: int = 0
    compared: int = 0
    waited_ns: int = 0


class Waits:
    """Of one primary. Times are boot times in nanoseconds."""

    def __init__(self, timing: Deadlines, plane: Plane, now_ns: int) -> None:
        self._timing, self._pacing, self._plane = timing, timing.pacing, plane
        self.pace = Pace(timing.pacing.wanted)
        self.told: list[str] = []  # sentences that nobody has taken yet
        self.ages: dict[str, int] = {}  # how often a checkpoint was asked for age, by why
        self.begin(now_ns)

    def begin(self, now_ns: int) -> None:
        """A pairing begins."""
        timing, pacing = self._timing, self._pacing
        self.patience = Patience(timing.compare_timeout_ns, pacing.longest_wait_ns, now_ns)
        self.bound = Bound(pacing.max_pause_ns, timing.longest_epoch_ns)
        self.pace.begin(now_ns)
        self._gather = Gather(now_ns)
        self._before = _Before(now_ns)
        self._ages = (0, 0)
        self._idle = False  # the last checkpoint for age was taken for what the SVM will not say
        self._pause_ns = self._held_ever = self._well = self._spent = 0

    @property
    def due_ns(self) -> int | None:
        """When to look; None: at the next frame that is held."""
        own = self._gather if self.pace.way is Way.PERIODIC else self.patience
        due_ns, pace_ns = own.due_ns, self.pace.due_ns
        return pace_ns if due_ns is None else min(due_ns, pace_ns or due_ns)

    def covers(self, cause: Cause, now_ns: int) -> bool:
        """A checkpoint for it comes anyway."""
        covered = self.pace.way is Way.PERIODIC and cause in COVERED
        if covered and self.pace.probe.differs():
            self._gather.due_ns = now_ns
        return covered

    def first(self, now_ns: int) -> None:
        """A frame is held, and none was before."""
        self._held_ever, self._well = self._plane.held_ever(), 0
        self.patience.first(now_ns)
        self._gather.first(self._held_ever, now_ns)

    def stopped(self) -> None:
        """The VM stands for a checkpoint: no other frame can be held before it runs again."""
        self._ages = self._plane.held_ages()

    def loaded(self, one: Loaded) -> None:
        """A checkpoint is loaded, nothing has left yet."""
        lateness, compared = self._plane.lateness(), self._plane.compared_frames()
        self.patience.yardstick.read(lateness)
        self.patience.loaded(one.resumed_ns)
        self._plane.loaded(one.resumed_ns)
        frames, came_ns = self._ages
        cycle = Cycle(
            began_ns=self._before.at_ns,
            ended_ns=one.resumed_ns,
            pause_ns=one.pause_ns,
            differs=one.cause in _DIFFERS or (one.cause is Cause.HOLD_AGE and self._idle),
            compared=compared - self._before.compared,
            compared_wait_ns=lateness.waited_ns - self._before.waited_ns,
            flushed=frames,
            flushed_wait_ns=frames * one.resumed_ns - came_ns,
        )
        self._before = _Before(one.resumed_ns, compared, lateness.waited_ns)
        self._ages, self._pause_ns = (0, 0), one.pause_ns
        self.bound.loaded(cycle)
        self._say(self.pace.loaded(cycle))

    def flushed(self, now_ns: int) -> None:
        """What the checkpoint has let out is gone: what is held from now on waits anew."""
        if self.pace.way is Way.PERIODIC:
            self._begin_anew(now_ns)

    def look(self, told: Told | None, now_ns: int) -> Cause | None:
        """Why a checkpoint is due now; None: it is not."""
        self._say(self.pace.look(now_ns))
        due_ns, news = self.due_ns, self._is_news(told)
        if due_ns is None or (now_ns < due_ns and not news):
            return None
        frames = self._plane.held_frames()
        if not frames and self._at_rest():
            self._begin_anew(now_ns)
            return None
        if self.pace.way is Way.PERIODIC:
            return self._look_gathered(frames, now_ns)
        return self._look_for_late(self._plane.waiting(), told, now_ns)

    def _is_news(self, told: Told | None) -> bool:
        """The secondary has just said that to wait is in vain."""
        if told is None:
            return False
        before, self._spent = self._spent, told.spent
        return told.spent not in (0, before) and told.spent == self.patience.question

    def _say(self, sentence: str) -> None:
        if sentence:
            self.told.append(sentence)

    def _at_rest(self) -> bool:
        """No frame was held since the last look: to be told of the next one is cheaper."""
        before, self._held_ever = self._held_ever, self._plane.held_ever()
        return before == self._held_ever

    def _look_for_late(self, waiting: Waiting, told: Told | None, now_ns: int) -> Cause | None:
        patience, why = self.patience, ""
        if waiting.oldest_ns is None:  # nothing, or all of it is leaving
            patience.due_ns = now_ns
        else:
            patience.yardstick.read(self._plane.lateness())
            why = patience.look(waiting, told, now_ns)
        if why:
            self.ages[why] = self.ages.get(why, 0) + 1
            self._idle = why in (IDLE, OVERTAKEN)
            return Cause.HOLD_AGE
        late = waiting.oldest_ns is not None and patience.question == waiting.answer_ns
        self._well = 0 if late or waiting.timer_ns else self._well + 1
        steady_ns = now_ns + _STEADY_NS // (1 if self._well > _STEADY_LOOKS else 3)
        if not late:
            patience.due_ns = max(patience.due_ns or 0, steady_ns)
        return None

    def _begin_anew(self, now_ns: int) -> None:
        """Ask to be told of the next held frame; it may have come by now."""
        self.pace.probe.cleared()
        self.patience.none()
        self._gather.none()
        self._plane.rearm_held()
        if self._plane.held_frames():
            self.first(now_ns)

    def _look_gathered(self, frames: int, now_ns: int) -> Cause | None:
        if not frames:
            self._gather.due_ns = now_ns + Gather.EVERY_NS
            return None
        period_ns = self._pacing.period_ns
        if period_ns:
            due_ns = self._before.at_ns + period_ns
            self._gather.due_ns = due_ns if now_ns < due_ns else now_ns + period_ns
            return Cause.OUTPUT if now_ns >= due_ns else None
        if not self._gather.look(self._plane.held_ever(), self._pause_ns, now_ns):
            return None
        worth_ns = self.patience.may_wait_ns(now_ns)
        off = self.pace.puts_off(self._plane.waiting().data_ns, worth_ns, now_ns)
        return None if off else Cause.OUTPUT
