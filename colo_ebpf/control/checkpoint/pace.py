# SPDX-License-Identifier: GPL-2.0-only
"""Whether checkpoints follow from what differs, or come as soon as output waits. Pure.

Comparing pays while the two VMs mostly say the same: an answer then waits for the SVM alone. Where
nearly every answer differs for a good reason (random numbers, the order of concurrent requests), it
waits for the SVM in vain, and for the checkpoint too. Then it is better not to wait: a checkpoint
is taken as soon as output is held and the PVM has no more to say for now (`Gather`).

Both are measured by the same things: how long an answer waits until it leaves, and how many leave
in a second (`Score`). While checkpoints for what differs come often, the other way is tried for a
moment, and kept if it is better. Comparing is tried again once a few answers were the same
(`probe`), and now and then all the same: it may be better though some differ. A try that was in
vain is repeated after twice the time, within limits: a load may change.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from colo_ebpf.control.checkpoint.probe import Probe

_MS = 1_000_000
_KEPT = 8  # cycles

_CYCLES = 3  # to judge by
_OFTEN_NS = 2_000 * _MS  # within which they have to come
_SAME_LOAD_NS = 500 * _MS  # what is older may be of another load
_NO_LOAD_NS = 4_000 * _MS  # without a cycle there is none
_TRY_NS = 1_000 * _MS  # a try is over after so long
_BETTER = 0.9  # of the other's wait: less is noise
_GATHER_NS = 4 * _MS  # what gathering adds to a pause, before it was ever measured
_GAP_PAUSES, _GAP_MOST_NS = 6, 5 * _MS  # a part of a pause in which nothing more comes
_RUN_PAUSES, _RUN_LEAST_NS = 2, 20 * _MS  # pauses the PVM runs for at most, while more comes
_REST_LEAST_NS = 1_000 * _MS
_CLEARLY = 3  # times what the other way promises: it is tried however lately it was in vain
_HOPELESS = 1.5  # times as bad as the other: then one cycle is enough of a try


class Wanted(enum.Enum):
    """How checkpoints come about, as the configuration says (`[checkpoint] mode`)."""

    AUTO = "auto"
    COMPARE = "compare"
    PERIODIC = "periodic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """How checkpoints come about, from [checkpoint]. Nanoseconds."""

    wanted: Wanted
    period_ns: int  # PERIODIC: between two; 0: as soon as output waits
    longest_wait_ns: int  # of an answer, while the SVM is known to work
    max_pause_ns: int  # epochs are made shorter for it; 0: they are not


class Way(enum.Enum):
    """How checkpoints come about."""

    COMPARE = "compare"
    PERIODIC = "periodic"


_AT_FIRST = {
    Wanted.AUTO: "output is compared",
    Wanted.COMPARE: "output is compared, as configured",
    Wanted.PERIODIC: "checkpoints come as soon as output waits, as configured",
}
_TRY_CYCLES = {Way.COMPARE: 3, Way.PERIODIC: _KEPT}  # a try is over after so many
_REST_MOST_NS = {Way.COMPARE: 4_000 * _MS, Way.PERIODIC: 16_000 * _MS}  # of the way that is taken


@dataclass(frozen=True, slots=True)
class Cycle:
    """From one load to the next. Times in nanoseconds.

    `compared` frames left because the SVM said the same, after waiting for `compared_wait_ns` all
    together; `flushed` ones left with the checkpoint, after `flushed_wait_ns`.
    """

    began_ns: int
    ended_ns: int
    pause_ns: int
    differs: bool  # it was taken because the two VMs do
    compared: int
    compared_wait_ns: int
    flushed: int
    flushed_wait_ns: int

    @property
    def length_ns(self) -> int:
        """Of the epoch and the pause behind it."""
        return self.ended_ns - self.began_ns


@dataclass(frozen=True, slots=True)
class Score:
    """What some cycles were like: how long a frame waited, how many left in a second."""

    wait_ns: float
    per_s: float

    @classmethod
    def of(cls, cycles: Sequence[Cycle]) -> Score | None:
        """None: no frame left."""
        frames = sum(one.compared + one.flushed for one in cycles)
        waited_ns = sum(one.compared_wait_ns + one.flushed_wait_ns for one in cycles)
        length_ns = sum(one.length_ns for one in cycles)
        if not frames or not length_ns:
            return None
        return cls(waited_ns / frames, frames * 1e9 / length_ns)

    def beats(self, other: Score, factor: float) -> bool:
        """It is better by more than this factor (below 1): of two with as many frames the one with
        the shorter wait, of two with equal waits the one with more frames."""
        return self.wait_ns * other.per_s < other.wait_ns * self.per_s * factor


def _mean_pause_ns(cycles: Sequence[Cycle]) -> float:
    pauses = [one.pause_ns for one in cycles]
    return sum(pauses) / len(pauses)


@dataclass(slots=True)
class Pace:
    """Which way is taken, and why. Times are boot times in nanoseconds."""

    wanted: Wanted = Wanted.AUTO
    way: Way = Way.COMPARE
    why: str = _AT_FIRST[Wanted.AUTO]
    probe: Probe = field(default_factory=Probe)
    _cycles: list[Cycle] = field(default_factory=list)  # the last few of the present way
    _tries: bool = False  # the present way, against the one before
    _since_ns: int = 0  # the present way is taken
    _before: Score | None = None  # of the way before
    _rest_ns: int = _REST_LEAST_NS  # until the other way is tried again
    _rest_until_ns: int = 0

    def begin(self, now_ns: int) -> None:
        """A pairing begins."""
        self._tries, self._before, self.probe = False, None, Probe()
        self._rest_ns, self._rest_until_ns = _REST_LEAST_NS, now_ns
        self._take(Way.PERIODIC if self.wanted is Wanted.PERIODIC else Way.COMPARE, now_ns)
        self.why = _AT_FIRST[self.wanted]

    @property
    def due_ns(self) -> int | None:
        """When `look` may change something though no checkpoint comes; None: never."""
        if self.wanted is not Wanted.AUTO:
            return None
        if self._tries and self.way is Way.COMPARE:
            return self._since_ns + _TRY_NS
        if self.way is Way.COMPARE or self._tries:
            return None
        last_ns = self._cycles[-1].ended_ns if self._cycles else self._since_ns
        return max(self._rest_until_ns, last_ns + _NO_LOAD_NS + 1)

    def puts_off(self, oldest_ns: int | None, worth_ns: int, now_ns: int) -> bool:
        """A checkpoint is due for output that waits: put it off, to see whether it is needed."""
        return not self._tries and self.probe.puts_off(oldest_ns, worth_ns, now_ns)

    def loaded(self, cycle: Cycle) -> str:
        """A checkpoint is loaded. Returns the sentence that tells of a change; "": of none."""
        if self.wanted is not Wanted.AUTO or cycle.began_ns < self._since_ns:
            return ""
        if self.way is Way.COMPARE and not cycle.differs:
            return ""
        self.probe.loaded()
        self._cycles = [*self._cycles, cycle][-_KEPT:]
        return self._judge(cycle.ended_ns)

    def look(self, now_ns: int) -> str:
        """Time has passed. Returns the same."""
        due_ns = self.due_ns
        due = self.probe.enough or (due_ns is not None and now_ns >= due_ns)
        return self._judge(now_ns) if due else ""

    def _judge(self, now_ns: int) -> str:
        if self._tries:
            enough = len(self._cycles) >= _TRY_CYCLES[self.way] or self._hopeless()
            over = enough or now_ns - self._since_ns >= _TRY_NS
            return self._end_try(now_ns) if over else ""
        if self.way is Way.PERIODIC:
            recent = self._recent(_SAME_LOAD_NS, now_ns)
            begins = 0 < len(recent) < _CYCLES  # a load: the try could not be judged by it
            rested = now_ns >= self._rest_until_ns and not begins
            due = rested or self.probe.enough or self._says_the_same()
            return self._try(Way.COMPARE, recent, now_ns) if due else ""
        recent = self._recent(_OFTEN_NS, now_ns)[-_CYCLES:]
        score = Score.of(recent)
        if len(recent) < _CYCLES or score is None:
            return ""
        promised_ns = _mean_pause_ns(recent) + _GATHER_NS
        clear = score.wait_ns > _CLEARLY * promised_ns and now_ns - self._since_ns >= _REST_LEAST_NS
        if score.wait_ns * _BETTER <= promised_ns or (now_ns < self._rest_until_ns and not clear):
            return ""
        return self._try(Way.PERIODIC, recent, now_ns)

    def _recent(self, within_ns: int, now_ns: int) -> list[Cycle]:
        return [one for one in self._cycles if now_ns - one.ended_ns <= within_ns]

    def _says_the_same(self) -> bool:
        """Most of what leaves does so because the SVM has said it, before the checkpoint comes."""
        compared = sum(one.compared for one in self._cycles)
        enough = len(self._cycles) == _KEPT and compared >= _KEPT
        return enough and compared > sum(one.flushed for one in self._cycles)

    def _hopeless(self) -> bool:
        now, before = Score.of(self._cycles), self._before
        return now is not None and before is not None and before.beats(now, 1 / _HOPELESS)

    def _take(self, way: Way, now_ns: int) -> None:
        self.way, self._since_ns = way, now_ns
        self._cycles = []

    def _try(self, way: Way, before: Sequence[Cycle], now_ns: int) -> str:
        self._before = Score.of(before)
        self._tries = True
        self._take(way, now_ns)
        return ""

    def _end_try(self, now_ns: int) -> str:
        """Keep what was tried if answers waited less, else go back for twice as long."""
        self._tries = False
        now, before = Score.of(self._cycles), self._before
        if self.way is Way.COMPARE and not self._cycles:
            return self._settle(Way.COMPARE, now_ns, "nothing differed for a while")
        if now is not None and (before is None or now.beats(before, _BETTER)):
            return self._settle(self.way, now_ns, f"answers wait for {now.wait_ns / _MS:.0f} ms")
        other = Way.COMPARE if self.way is Way.PERIODIC else Way.PERIODIC
        self._rest_ns = min(2 * self._rest_ns, _REST_MOST_NS[other])
        self.probe.in_vain()
        self._take(other, now_ns)
        self._rest_until_ns = now_ns + self._rest_ns
        return ""

    def _settle(self, way: Way, now_ns: int, because: str) -> str:
        self._rest_ns, self.probe = _REST_LEAST_NS, Probe()
        self._rest_until_ns = now_ns + self._rest_ns
        self._take(way, now_ns)
        if way is Way.COMPARE:
            self.why = f"output is compared again: {because}"
        else:
            self.why = f"checkpoints come as soon as output waits: it differs often, {because}"
        return self.why


@dataclass(slots=True)
class Gather:
    """When the PVM has said all it has to say for now. Times are boot times in nanoseconds."""

    due_ns: int | None = None
    _since_ns: int = 0
    _still_ns: int = 0  # nothing more was held, since
    _heads: int = 0  # frames ever held, at the last look

    EVERY_NS = 1 * _MS

    def first(self, heads: int, now_ns: int) -> None:
        """A frame is held, and none was before."""
        self._heads, self._since_ns, self._still_ns = heads, now_ns, now_ns
        self.due_ns = now_ns + self.EVERY_NS

    def none(self) -> None:
        """Nothing is held."""
        self.due_ns = None

    def look(self, heads: int, pause_ns: int, now_ns: int) -> bool:
        """Call it when it is due. `pause_ns`: what a checkpoint costs, which is worth waiting for
        more; but for no longer than the PVM may run between two."""
        if heads != self._heads:
            self._heads, self._still_ns = heads, now_ns
        self.due_ns = now_ns + self.EVERY_NS
        gap_ns = min(max(pause_ns // _GAP_PAUSES, self.EVERY_NS), _GAP_MOST_NS)
        most_ns = max(_RUN_LEAST_NS, _RUN_PAUSES * pause_ns)
        return now_ns - self._still_ns >= gap_ns or now_ns - self._since_ns >= most_ns


@dataclass(slots=True)
class Bound:
    """How long an epoch may be, so that its checkpoint pauses the VM for no more than `pause_ns`.

    A pause grows with what the VM has written since the one before. 0: there is no bound.
    """

    pause_ns: int
    longest_ns: int
    _epoch_ns: int = 0

    LEAST = 2  # times the bound: an epoch is no shorter, or the VM would hardly run

    @property
    def epoch_ns(self) -> int:
        """The longest epoch now."""
        return self._epoch_ns or self.longest_ns

    def loaded(self, cycle: Cycle) -> None:
        """What a checkpoint has cost."""
        if not self.pause_ns:
            return
        ran_ns = max(cycle.length_ns - cycle.pause_ns, 1)
        if cycle.pause_ns > self.pause_ns:
            shorter = min(ran_ns, self.epoch_ns) * self.pause_ns // cycle.pause_ns
            self._epoch_ns = max(shorter, self.LEAST * self.pause_ns)
        elif 2 * cycle.pause_ns < self.pause_ns:
            self._epoch_ns = min(self.epoch_ns * 3 // 2, self.longest_ns)
