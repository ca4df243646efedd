# SPDX-License-Identifier: GPL-2.0-only
"""How long a held answer waits for the SVM before a checkpoint is taken instead. Pure.

It waits for as long as the SVM is on its way, and not longer. What the SVM does is seen on its own
host: once an answer has waited for a moment, the secondary is asked about it (`question`), watches
the SVM's vCPUs (`watch`), and says when waiting is in vain (`Told.spent`): the SVM is idle, or has
worked for several times as long as it usually needs (`worth_ns`).

- What it says of one answer holds for others: an SVM that is idle will give none that it has had
  the input of by then.
- An SVM that has given so many other answers meanwhile that each client had some (`_OVERTAKES`)
  will not give this one: its clients wait for each other in another order, behind a lock perhaps.
- *Usually* is what the data plane has counted (`lateness`). Soon after a load the SVM is slow, and
  has a yardstick of its own.
- A checkpoint that was taken for age, and after which the SVM said nothing before the next one was
  due, was taken too early: then all of this is doubled. Answers of the SVM bring it back.
- What the SVM's TCP says by a timer of its own, as a delayed ACK (RFC 1122, 4.2.3.2), comes from an
  idle SVM too: such a frame waits for longer than that timer takes.

If the secondary's daemon is not heard, time alone decides, and nothing is doubled: checkpoints are
all that lets anything out then. Frames leave about in the order in which they
came: while those before it still leave, the SVM is behind but comes along. A frame that has become
the oldest and stays it is the one that the SVM does not send: for half the time an answer may
wait, or for half as long as the SVM was behind by then, and for the time it takes to send all the
others that wait, for it may send them first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from colo_ebpf.control.checkpoint.lateness import Yardstick
from colo_ebpf.model import FRESH_NS, Waiting

_MS = 1_000_000
_LONGEST = 20  # times as long as an answer may wait: then the SVM is put level again
_EACH_NS = 25_000  # for an SVM that has a processor to itself: 40,000 answers a second
_ASK_LEAST_NS, _ASK_MOST_NS = 10 * _MS, 20 * _MS  # an answer's age at which the secondary is asked
_COVERS_NS = 20 * _MS  # by what the secondary looks back, and its word is on the way, at most
_TIMES_USUAL = 3
_FRESH_USUAL_NS = 100 * _MS  # while nobody knows how slow the SVM is after a load
_TIMER_NS = 250 * _MS  # delayed ACKs come after 200 ms at the latest
_DOUBLED_MOST = 4
_OVERTAKES, _OVERTAKES_LEAST = 4, 32  # answers for each frame that waits, and in all
_RECENT_NS = 3_000 * _MS  # a checkpoint for age says nothing of one that was longer ago


IDLE = "the SVM is idle and has not said it"
OVERTAKEN = "the SVM has said what came after it"
IN_VAIN = "the SVM has worked for long and has not said it"


@dataclass(frozen=True, slots=True)
class Told:
    """What the secondary says: questions by their number, 0: none. `idle`: the SVM was, then."""

    watches: int = 0
    spent: int = 0
    idle: bool = False


@dataclass(slots=True)
class _Queue:
    """By time alone: does the queue of held frames move?"""

    oldest_ns: int = 0  # none is older, since
    since_ns: int = 0

    def due_ns(self, oldest_ns: int, frames: int, timeout_ns: int, now_ns: int) -> int:
        if oldest_ns > self.oldest_ns:
            self.oldest_ns, self.since_ns = oldest_ns, now_ns
        behind_ns = self.since_ns - self.oldest_ns
        stays_ns = self.since_ns + max(timeout_ns, behind_ns) // 2 + frames * _EACH_NS
        latest_ns = oldest_ns + _LONGEST * timeout_ns
        return max(oldest_ns + timeout_ns, min(stays_ns, latest_ns))


@dataclass(slots=True)
class Patience:
    """Of one primary. Times are boot times in nanoseconds.

    `least_ns`: an answer may wait so long at least, whatever is usual. `longest_ns`: and so long at
    most, while the SVM is known to work.
    """

    least_ns: int
    longest_ns: int
    due_ns: int | None  # when to look; None: at the next frame that is held
    yardstick: Yardstick = field(default_factory=Yardstick)
    question: int = 0  # asked of the secondary: when the answer came that it is about
    worth_ns: int = 0  # processor time the SVM may spend on it
    doubled: int = 0  # times
    _compared_then: int = 0  # frames, when the question was asked
    _spent: int = 0  # what the secondary has said last
    _idle_ns: int = 0  # when it said that the SVM is idle
    _loaded_ns: int = 0
    _asked_ns: int | None = None  # when a checkpoint was last asked for age
    _compared: int = 0  # frames by then
    _queue: _Queue = field(default_factory=_Queue)

    def first(self, now_ns: int) -> None:
        """A frame is held, and none was before."""
        self._queue = _Queue(now_ns, now_ns)
        self.due_ns = now_ns + self._ask_after_ns()

    def none(self) -> None:
        """Nothing is held."""
        self.due_ns = None

    def loaded(self, now_ns: int) -> None:
        """The SVM has loaded a checkpoint."""
        self._loaded_ns = now_ns

    def may_wait_ns(self, now_ns: int) -> int:
        """Processor time the SVM may spend on an answer."""
        usual_ns = self.yardstick.usual_ns() or 0
        if now_ns - self._loaded_ns < FRESH_NS:
            usual_ns = max(usual_ns, self.yardstick.loaded_ns() or _FRESH_USUAL_NS)
        worth_ns = max(self.least_ns, usual_ns * _TIMES_USUAL) << self.doubled
        return min(worth_ns, self.longest_ns)

    def _ask_after_ns(self) -> int:
        usual_ns = self.yardstick.usual_ns() or 0
        return min(max(usual_ns, _ASK_LEAST_NS), _ASK_MOST_NS) << self.doubled

    def look(self, held: Waiting, told: Told | None, now_ns: int) -> str:
        """Why a checkpoint is due; "": it is not. Something is held. `told` None: the secondary's
        daemon is not heard."""
        due = [self._answer(held.answer_ns, held, told, now_ns)] if held.answer_ns else []
        if held.timer_ns is not None:
            due.append((held.timer_ns + _TIMER_NS, "an ACK of the SVM is missing"))
        due_ns, why = min(due)
        if now_ns < due_ns:
            self.due_ns = due_ns
            return ""
        if told is not None:
            self._learn(held.compared, now_ns)
        self.due_ns = now_ns + self.least_ns
        return why

    def _answer(
        self, oldest_ns: int, held: Waiting, told: Told | None, now_ns: int
    ) -> tuple[int, str]:
        """When an answer has waited long enough, as far as is known now, and why."""
        if told is None:
            due_ns = self._queue.due_ns(oldest_ns, held.frames, self.least_ns, now_ns)
            return due_ns, "nobody says what the SVM does"
        ask_ns = oldest_ns + self._ask_after_ns()
        if why := self._in_vain(oldest_ns, told, now_ns):
            return ask_ns, why
        if now_ns < ask_ns:
            return ask_ns, ""
        worth_ns = self.may_wait_ns(now_ns)
        if self.question != oldest_ns:
            self.question, self.worth_ns = oldest_ns, worth_ns
            self._compared_then = held.compared
        elif self._is_overtaken(held):
            return ask_ns, OVERTAKEN
        if told.watches == oldest_ns:
            return oldest_ns + self.longest_ns, f"the SVM is {self.longest_ns // _MS} ms late"
        due_ns = self._queue.due_ns(oldest_ns, held.frames, worth_ns, now_ns)
        return due_ns, "the SVM does not send it"

    def _in_vain(self, oldest_ns: int, told: Told, now_ns: int) -> str:
        """Has the secondary said that it is, of this answer, or that the SVM is idle, of another
        one, when it had the input of this one?"""
        if told.spent != self._spent:
            self._spent = told.spent
            self._idle_ns = now_ns if told.idle else 0
        if told.spent == oldest_ns:
            return IDLE if told.idle else IN_VAIN
        return IDLE if oldest_ns + _COVERS_NS <= self._idle_ns else ""

    def _is_overtaken(self, held: Waiting) -> bool:
        """Since the question was asked the SVM has given many other answers."""
        others = held.compared - self._compared_then
        return others >= max(_OVERTAKES * held.frames, _OVERTAKES_LEAST)

    def _learn(self, compared: int, now_ns: int) -> None:
        """Was the checkpoint before taken in vain? Then the SVM has said nothing since."""
        before_ns, self._asked_ns = self._asked_ns, now_ns
        silent, self._compared = compared == self._compared, compared
        if before_ns is None or now_ns - before_ns > _RECENT_NS:
            self.doubled = 0
        elif silent:
            self.doubled = min(self.doubled + 1, _DOUBLED_MOST)
        else:
            self.doubled = max(self.doubled - 1, 0)
