# SPDX-License-Identifier: GPL-2.0-only
"""The way of a checkpoint on the primary: a state machine without I/O.

::

    IDLE ──ask──▶ ANNOUNCED ──armed, or late──▶ TRIGGERED ──STOP──▶ TURNED ──"stopped"──▶ PROVEN ─┐
     ▲              (n told to     (cell: e, TURNING;   (cell: n, TURNING;   (cell: n, OPEN)      │
     │               the peer)      then the trigger)    query-status)                            │
     ├──────────────── flush ◀── RESUME, loaded ──────────────────────────────────────────────────┤
     ├───── flush ◀── answered ── CONFIRMING (query-status) ◀── RESUME, the secondary told ───────┘
     └──again─── RESUME without proof (cell stays TURNING) ◀── TURNED

A turn is proven if query-status says "stopped" and no RESUME was read between the STOP and the
reply: then the VM cannot have produced a frame before the cell said n. RESUME means "loaded" only
if we triggered, neither COLO_EXIT nor a disk error came before it, and QEMU shows one of these:

- A MIGRATION_PASS came between STOP and RESUME.
- QEMU 11 sends none in a checkpoint. Its COLO trace shows, when RESUME is read, that the secondary
  has said "loaded" since the STOP; and a query that is sent then is answered before another STOP is
  read. That load was not of a later checkpoint then, which we were too late to tell apart: it would
  have stopped the VM again, before the secondary could say so.

In any doubt everything stays held and another checkpoint is taken. After two unproven turns, and
always if a disk is shared, the VM is stopped first (STOPPING): nothing can run past that proof.
After eight in a row the pair ends: QEMU does not show what it would have to.

Epochs are 64 bits; the link carries the low 16, of which 0 matches nothing and is left out.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from colo_ebpf.control.checkpoint.histogram import Histogram
from colo_ebpf.model import Phase, Turn, VmEvent, VmEventKind

UNPROVEN_BEFORE_STOP = 2
UNPROVEN_MOST = 8  # in a row
BEYOND_RESTART = 16  # epochs skipped: an announced one may be in use on the secondary
RECENT = 64


class Cause(enum.Enum):
    """Why a checkpoint is taken."""

    MISMATCH = "mismatch"
    HOLD_AGE = "hold-age"
    STORE_FULL = "store-full"
    EPOCH_AHEAD = "epoch-ahead"
    MISSED_INPUT = "missed-input"
    SVM_RESET = "svm-reset"
    GAP = "gap"
    LONGEST_EPOCH = "longest-epoch"
    OUTPUT = "output"  # some waits, and to compare it is in vain (`pace`)
    OPERATOR = "operator"
    PEER = "peer"
    PROBE = "probe"  # the peer's daemon is silent: does its VM still answer?
    RESTART = "restart"  # this daemon found a pair it does not know the state of
    WARM_UP = "warm-up"
    PAIRING = "pairing"
    SWITCHOVER = "switchover"
    RESTORED = "restored"  # what somebody removed is put back: output may have left meanwhile
    GUEST_RESET = "guest-reset"  # in the middle of a checkpoint it would leave half of each
    UNPROVEN = "unproven"


# What these complain of happened in the epoch they name: loading a later checkpoint settles it.
OF_AN_EPOCH = frozenset(
    {
        Cause.MISMATCH,
        Cause.HOLD_AGE,
        Cause.STORE_FULL,
        Cause.EPOCH_AHEAD,
        Cause.MISSED_INPUT,
        Cause.SVM_RESET,
        Cause.GAP,
    }
)


class Stage(enum.Enum):
    """Where the turn stands (picture above)."""

    OFF = "off"  # not replicated
    IDLE = "idle"
    ANNOUNCED = "announced"
    STOPPING = "stopping"
    TRIGGERED = "triggered"
    TURNED = "turned"
    PROVEN = "proven"
    CONFIRMING = "confirming"
    BROKEN = "broken"  # no checkpoint can be taken any more: the pair has ended


class Do(enum.Enum):
    """Commands to the VM; each is answered by `replied` or `failed`."""

    TRIGGER = "trigger"
    STOP_VM = "stop"
    QUERY_STATUS = "query-status"


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the peer at once which epoch comes."""

    epoch: int


@dataclass(frozen=True, slots=True)
class WriteTurn:
    """Write the turn cell, before any action that follows it."""

    epoch: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class Command:
    """Start a command; its answer carries the same serial."""

    what: Do
    serial: int


@dataclass(frozen=True, slots=True)
class Flush:
    """The finished epochs are loaded: let their frames leave."""


Action = Announce | WriteTurn | Command | Flush


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines, from the configuration."""

    arm_ns: int
    checkpoint_ns: int
    longest_epoch_ns: int
    stands_first: bool = False  # the VM is stopped before QEMU is asked: a disk is shared


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint that the secondary has loaded and whose turn is proven."""

    epoch: int
    triggered_ns: int
    resumed_ns: int
    pause_ns: int
    reaction_ns: int  # from the first cause to the trigger
    armed: bool  # the secondary was known to be ready for it
    cause: Cause


@dataclass(frozen=True, slots=True)
class _Ask:
    at_ns: int
    epoch: int


def _ends_pair(event: VmEvent) -> str:
    """Why no checkpoint can be taken after it ("": one can)."""
    if event.kind is VmEventKind.COLO_EXIT:
        return "COLO ended: the connection to the secondary's QEMU is gone"
    if event.kind is VmEventKind.DISK_BAD:
        return "a write to the secondary's disk failed"
    stands = event.kind is VmEventKind.BLOCK_ERROR and event.data.get("action") == "stop"
    return "the secondary did not take what the shared disk had" if stands else ""


def next_epoch(above: int) -> int:
    """The smallest epoch above it whose low 16 bits are not the reserved 0."""
    n = above + 1
    return n + 1 if n & 0xFFFF == 0 else n


@dataclass(slots=True)
class PrimaryCheckpoints:
    """Checkpoints of one pairing as the primary takes them. Every method returns what to do."""

    limits: Limits
    stage: Stage = Stage.OFF
    epoch: int = 0  # of the turn cell
    phase: Phase = Phase.OPEN
    target: int = 0  # epoch announced
    sentence: str = "not replicated"
    broken: str = ""  # why the pair has ended
    loaded: Loaded | None = None
    by_cause: dict[Cause, int] = field(default_factory=dict)
    recent: deque[Loaded] = field(default_factory=lambda: deque(maxlen=RECENT))
    pauses: Histogram = field(default_factory=Histogram)
    reactions: Histogram = field(default_factory=Histogram)
    unproven_turns: int = 0
    triggered_ns: int = 0
    longest_epoch_ns: int = field(init=False)  # as things are: no longer than `limits` has it
    _asked: dict[Cause, _Ask] = field(default_factory=dict)
    _covered: dict[Cause, _Ask] = field(default_factory=dict)
    _armed: bool = False
    _passed: bool = False
    _unproven_row: int = 0
    _since_ns: int = 0
    _told: int = 0  # loads of the secondary when the VM stood
    _stopped_ns: int = 0
    _resumed_ns: int = 0
    _rested_ns: int = 0
    _serial: int = 0

    def __post_init__(self) -> None:
        self.longest_epoch_ns = self.limits.longest_epoch_ns

    def begin(self, cell: Turn, now_ns: int, *, restarted: bool) -> list[Action]:
        """The VM is in COLO. After a restart of the daemon the pair's state is unknown: look."""
        self.stage, self.broken = Stage.IDLE, ""
        self.epoch, self.phase = cell.epoch, cell.phase
        self.loaded, self._rested_ns = None, now_ns
        self._asked, self._covered, self._unproven_row = {}, {}, 0
        self.longest_epoch_ns = self.limits.longest_epoch_ns
        self.sentence = f"epoch {self.epoch}"
        # What the daemon before us announced and the cell does not show is left behind.
        self.target = cell.epoch + BEYOND_RESTART if restarted else 0
        return self.ask(Cause.RESTART, now_ns) if restarted else []

    def end(self) -> None:
        """The pairing is over."""
        self.stage, self.broken, self.sentence = Stage.OFF, "", "not replicated"
        self._asked, self._covered = {}, {}

    @property
    def pending(self) -> frozenset[Cause]:
        """Causes that the next load, not the last one, answers."""
        return frozenset(self._asked | self._covered)

    @property
    def settled_epoch(self) -> bool:
        """The cell's epoch began with a loaded checkpoint: frames of past epochs may leave."""
        return (
            self.loaded is not None
            and self.loaded.epoch == self.epoch
            and self.stage in (Stage.IDLE, Stage.ANNOUNCED, Stage.TRIGGERED, Stage.STOPPING)
        )

    # --- what may happen ---------------------------------------------------------------

    def ask(self, cause: Cause, now_ns: int, epoch: int | None = None) -> list[Action]:
        """Somebody wants a checkpoint; one that is running is used if it can still serve."""
        if self.stage in (Stage.OFF, Stage.BROKEN):
            return []
        epoch = self.epoch if epoch is None else epoch
        if cause in OF_AN_EPOCH and epoch < self.epoch:
            return []
        self._asked.setdefault(cause, _Ask(now_ns, epoch))
        return []

    def look(self, now_ns: int, *, taken: int, armed: int, listening: bool) -> list[Action]:
        """A turn of the decision cycle.

        `taken` is the highest epoch the peer ever turned to or armed, `armed` the one it is armed
        for, `listening` whether it is heard at all (else waiting for it is in vain).
        """
        if self.stage is Stage.IDLE:
            if now_ns - self._rested_ns >= self.longest_epoch_ns:
                self.ask(Cause.LONGEST_EPOCH, now_ns)
            return self._announce(now_ns, taken) if self._asked else []
        if self.stage is Stage.ANNOUNCED:
            self._armed = armed == self.target
            late = now_ns - self._since_ns >= self.limits.arm_ns
            return self._go(now_ns) if self._armed or late or not listening else []
        if self.stage in (Stage.OFF, Stage.BROKEN):
            return []
        if now_ns - self._since_ns >= self.limits.checkpoint_ns:
            return self._break(f"checkpoint stuck, {self.stage.value} at epoch {self.target}")
        return []

    def quiet_until_ns(self) -> int:
        """Until then `look` finds nothing to do, whatever the peer says of its epochs."""
        if self.stage is not Stage.IDLE or self._asked:
            return 0
        return self._rested_ns + self.longest_epoch_ns

    def vm_event(self, event: VmEvent, told: int) -> list[Action]:
        """One event of the VM, in order. `told`: loads that the secondary has said, so far."""
        if self.stage in (Stage.OFF, Stage.BROKEN):
            return []
        kind = event.kind
        if why := _ends_pair(event):
            return self._break(why)
        if kind is VmEventKind.MIGRATION_PASS:
            self._passed = True
        elif kind is VmEventKind.STOP:
            return self._on_stop(event.at_ns, told)
        elif kind is VmEventKind.RESUME:
            return self._on_resume(event.at_ns, told)
        return []

    def replied(self, command: Command, stopped: bool, told: int) -> list[Action]:
        """The answer to a command; `stopped` is what query-status said (else not looked at)."""
        if command.serial != self._serial:
            return []
        if command.what is Do.STOP_VM and self.stage is Stage.STOPPING:
            return self._on_stop(self._since_ns, told)  # it stood already: no STOP was sent
        if command.what is not Do.QUERY_STATUS:
            return []
        if self.stage is Stage.CONFIRMING:
            return self._done(self._resumed_ns)
        then = {Stage.TURNED: self._prove, Stage.STOPPING: self._stopped_first}.get(self.stage)
        return then() if then and stopped else []

    def failed(self, command: Command, error: str) -> list[Action]:
        """A command failed or timed out. A lost answer of query-status only leaves no proof."""
        if command.serial != self._serial or self.stage in (Stage.OFF, Stage.BROKEN):
            return []
        if command.what is Do.QUERY_STATUS and self.stage is Stage.TURNED:
            return []
        if command.what is Do.QUERY_STATUS and self.stage is Stage.CONFIRMING:
            return self._again(self._resumed_ns)
        return self._break(f"{command.what.value}: {error}")

    # --- the way, in order -------------------------------------------------------------

    def _announce(self, now_ns: int, taken: int) -> list[Action]:
        self.target = next_epoch(max(self.epoch, self.target, taken))
        self.stage, self._since_ns, self._armed = Stage.ANNOUNCED, now_ns, False
        self.sentence = f"announced epoch {self.target} ({self._first_cause().value})"
        return [Announce(self.target)]

    def _go(self, now_ns: int) -> list[Action]:
        self._since_ns = now_ns
        hold = self._write(self.epoch, Phase.TURNING)
        self._passed = False
        if self.limits.stands_first or self._unproven_row >= UNPROVEN_BEFORE_STOP:
            self.stage, self._stopped_ns = Stage.STOPPING, 0
            self.sentence = f"stopping the VM before epoch {self.target}"
            return [hold, self._command(Do.STOP_VM)]
        return [hold, *self._trigger(now_ns)]

    def _trigger(self, now_ns: int) -> list[Action]:
        self.stage, self.triggered_ns, self._stopped_ns = Stage.TRIGGERED, now_ns, 0
        self.sentence = f"checkpoint to epoch {self.target} triggered"
        return [self._command(Do.TRIGGER)]

    def _on_stop(self, at_ns: int, told: int) -> list[Action]:
        if self.stage is Stage.STOPPING:
            self._stopped_ns, self._told = at_ns, told
            return [self._turn(), self._command(Do.QUERY_STATUS)]
        if self.stage is Stage.TRIGGERED:
            self.stage, self._since_ns, self._stopped_ns = Stage.TURNED, at_ns, at_ns
            self._passed, self._told = False, told
            return [self._turn(), self._command(Do.QUERY_STATUS)]
        if self.stage is Stage.CONFIRMING:
            return self._again(at_ns)
        if self.stage in (Stage.IDLE, Stage.ANNOUNCED):
            self.ask(Cause.UNPROVEN, at_ns)
            return [self._write(self.epoch, Phase.TURNING)]
        return []

    def _turn(self) -> WriteTurn:
        """The VM stands: what it produced so far is of the old epoch, what comes, of the new."""
        self._covered, self._asked = self._covered | self._asked, {}
        return self._write(self.target, Phase.TURNING)

    def _stopped_first(self) -> list[Action]:
        """Proven before the trigger: the VM runs again only when the secondary has loaded."""
        stopped_ns, now_ns = self._stopped_ns, self._since_ns
        actions = self._trigger(now_ns)
        self.stage, self._stopped_ns, self._passed = Stage.PROVEN, stopped_ns, False
        return [self._write(self.epoch, Phase.OPEN), *actions]

    def _prove(self) -> list[Action]:
        self.stage = Stage.PROVEN
        self.sentence = f"turned to epoch {self.target}"
        return [self._write(self.epoch, Phase.OPEN)]

    def _on_resume(self, at_ns: int, told: int) -> list[Action]:
        if self.stage in (Stage.IDLE, Stage.ANNOUNCED):
            return []
        if self.stage is not Stage.PROVEN:
            return self._again(at_ns)
        if self._passed:
            return self._done(at_ns)
        if told <= self._told:
            return self._again(at_ns)
        self.stage, self._since_ns, self._resumed_ns = Stage.CONFIRMING, at_ns, at_ns
        return [self._command(Do.QUERY_STATUS)]

    def _done(self, at_ns: int) -> list[Action]:
        """Loaded, and proven to be."""
        self._unproven_row = 0
        self._count(at_ns)
        self.stage, self._rested_ns = Stage.IDLE, at_ns
        self.sentence = f"epoch {self.epoch}"
        return [Flush()]

    def _again(self, at_ns: int) -> list[Action]:
        """The VM runs and nobody can say since when: hold everything, take another one."""
        self.unproven_turns += 1
        self._unproven_row += 1
        if self._unproven_row >= UNPROVEN_MOST:
            return self._break(
                f"{self._unproven_row} checkpoints in a row are not proven to be loaded: neither"
                " QEMU's events nor its COLO trace show it"
            )
        self._asked = self._covered | self._asked
        self._covered = {}
        self._asked.setdefault(Cause.UNPROVEN, _Ask(at_ns, self.epoch))
        self.stage, self._rested_ns = Stage.IDLE, at_ns
        self.sentence = f"the turn to epoch {self.target} is not proven: taking another checkpoint"
        return [self._write(self.epoch, Phase.TURNING)]

    def _count(self, at_ns: int) -> None:
        first = min((ask.at_ns for ask in self._covered.values()), default=self.triggered_ns)
        cause = self._first_cause()
        self.by_cause[cause] = self.by_cause.get(cause, 0) + 1
        self.loaded = Loaded(
            epoch=self.epoch,
            triggered_ns=self.triggered_ns,
            resumed_ns=at_ns,
            pause_ns=at_ns - self._stopped_ns,
            reaction_ns=max(0, self.triggered_ns - first),
            armed=self._armed,
            cause=cause,
        )
        self.recent.append(self.loaded)
        self.pauses.add(self.loaded.pause_ns)
        self.reactions.add(self.loaded.reaction_ns)
        self._covered = {}
        self._asked = {
            cause: ask
            for cause, ask in self._asked.items()
            if cause is not Cause.WARM_UP and (cause not in OF_AN_EPOCH or ask.epoch >= self.epoch)
        }

    def _first_cause(self) -> Cause:
        asks = self._covered | self._asked
        asked = {r: a for r, a in asks.items() if r is not Cause.UNPROVEN} or asks
        return min(asked, key=lambda r: asked[r].at_ns, default=Cause.UNPROVEN)

    def _break(self, why: str) -> list[Action]:
        """No trigger, no OPEN, no flush from here on; the decision core ends the pair."""
        self.stage, self.broken, self.sentence = Stage.BROKEN, why, why
        return [self._write(self.epoch, Phase.TURNING)]

    def _write(self, epoch: int, phase: Phase) -> WriteTurn:
        self.epoch, self.phase = epoch, phase
        return WriteTurn(epoch, phase)

    def _command(self, what: Do) -> Command:
        self._serial += 1
        return Command(what, self._serial)
