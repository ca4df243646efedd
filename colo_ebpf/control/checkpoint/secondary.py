# SPDX-License-Identifier: GPL-2.0-only
"""The secondary's turn: which epoch the SVM's frames carry. A state machine without I/O.

The epoch is the primary's number, never a count of our own: it announces n, we arm n, and the
next STOP writes n into the cell, before the SVM can run its new state. A STOP that was not armed,
or loads that do not add up, write 0, which matches nothing, and ask for a checkpoint. Late or 0
costs a checkpoint, never safety: frames that carry another epoch than the primary's are dropped
there.

A SVM that its guest powered off stands already when it is loaded: there is no STOP, and it is never
armed.

At a takeover the cell must name the epoch of the *state* the SVM runs, since the sequence offsets
that become lasting are kept per epoch: `settle` brings it there from the COLO trace.
"""

from __future__ import annotations

from dataclasses import dataclass

from colo_ebpf.control.checkpoint.primary import WriteTurn
from colo_ebpf.model import Phase, Settled, Turn, VmEvent, VmEventKind

NEVER_NS = 1 << 63


@dataclass(frozen=True, slots=True)
class Note:
    """What must outlive the daemon: the cell's epoch and how many loads led to it."""

    epoch: int  # in the cell
    before: int  # the epoch before that turn, to go back to
    loads: int  # vmstate-loaded counted when the SVM runs the state of `epoch`
    highest: int  # ever turned to


@dataclass(slots=True)
class SecondaryCheckpoints:
    """Checkpoints of one pairing as the secondary takes them. Methods return cells to write."""

    check_ns: int  # time after RESUME at which the trace must show the load
    on: bool = False
    epoch: int = 0
    before: int = 0
    armed: int = 0
    loaded: int = 0  # epoch of the state the SVM runs; 0: not known
    highest: int = 0
    loads: int = 0  # that the trace must show
    want: str = ""
    unarmed_stops: int = 0
    _stopped: bool = False
    _off: bool = False  # it stands because its guest ended it, not for a load
    _check_at_ns: int | None = None

    def begin(
        self, cell: Turn, note: Note | None, loads: int, settled: Settled, now_ns: int
    ) -> list[WriteTurn]:
        """A fresh SVM (note None, cell of the past), or one adopted after a restart."""
        self.on, self.armed, self._stopped, self._off = True, 0, False, False
        self.unarmed_stops, self._check_at_ns = 0, now_ns + self.check_ns
        whole = settled in (Settled.CURRENT, Settled.NEW)
        if note is not None and whole and (note.epoch, note.loads) == (cell.epoch, loads):
            self.epoch, self.before, self.highest = note.epoch, note.before, note.highest
            self.loads, self.loaded, self.want = loads, note.epoch, ""
            return []
        self.highest = max(cell.epoch, note.highest if note else 0, self.highest)
        self.loads = loads
        return self._lose("loads happened that this daemon did not see" if note else "")

    def end(self) -> None:
        """The pairing is over; the cell stays as it is."""
        self.on, self.armed, self.loaded, self.want = False, 0, 0, ""
        self._stopped, self._check_at_ns = False, None

    @property
    def stopped(self) -> bool:
        """Under a load."""
        return self._stopped

    def note(self) -> Note:
        """To be kept whenever a cell was written."""
        return Note(self.epoch, self.before, self.loads, self.highest)

    def announced(self, epoch: int) -> bool:
        """The primary's next epoch. True if we are armed for it now and should say so."""
        standing = self._stopped or self._off
        if not self.on or standing or epoch <= self.highest or epoch == self.armed:
            return False
        self.armed = epoch
        return True

    def vm_event(self, event: VmEvent, settled: Settled) -> list[WriteTurn]:
        """One event of the SVM, in order; `settled` as the trace says it now."""
        if not self.on:
            return []
        if event.kind is VmEventKind.SHUTDOWN and event.data.get("guest"):
            self._off = not self._stopped
        elif event.kind is VmEventKind.STOP and not self._off:
            return self._on_stop()
        elif event.kind is VmEventKind.RESUME and self._off:
            return self._on_run_again()
        elif event.kind is VmEventKind.RESUME:
            self._on_resume(event.at_ns)
        elif event.kind is VmEventKind.COLO_EXIT and settled is Settled.OLD:
            return self._back()
        return []

    def look(self, now_ns: int) -> bool:
        """True when the loads in the trace should be counted (`counted`)."""
        due = self._check_at_ns is not None and now_ns >= self._check_at_ns
        if due:
            self._check_at_ns = None
        return due

    def quiet_until_ns(self) -> int:
        """Until then `look` says False. 0: not while it is under a load."""
        if self._stopped:
            return 0
        return NEVER_NS if self._check_at_ns is None else self._check_at_ns

    def counted(self, loads: int) -> list[WriteTurn]:
        """What the trace shows while the SVM runs undisturbed."""
        if not self.on or self._stopped or loads == self.loads:
            return []
        missing = f"{loads} loads in the trace, {self.loads} accounted for"
        self.loads = loads
        return self._lose(missing)

    def settle(self, settled: Settled, loads: int) -> list[WriteTurn]:
        """Before a takeover, once no load can come any more: the cell names the SVM's state.

        From here on a STOP is one of the failover itself.
        """
        self.on = False
        if settled is Settled.OLD:
            return self._back()
        # vmstate-loaded is sent after RESUME: the last one may have found nobody to go to.
        lost_one = settled is Settled.NEW and loads == self.loads - 1
        if loads != self.loads and not lost_one:
            self.loads = loads
            return self._lose(f"{loads} loads in the trace are not accounted for")
        return []

    def _on_stop(self) -> list[WriteTurn]:
        self._stopped, self._check_at_ns = True, None
        self.before = self.epoch
        self.loads += 1
        self.loaded = 0
        if not self.armed:
            self.unarmed_stops += 1
            return self._lose("a checkpoint came that was not armed")
        self.epoch, self.highest, self.armed = self.armed, self.armed, 0
        return [WriteTurn(self.epoch, Phase.OPEN)]

    def _on_run_again(self) -> list[WriteTurn]:
        self._off, self.armed = False, 0
        self.loads += 1
        return self._lose("it was loaded after its guest had powered it off")

    def _on_resume(self, at_ns: int) -> None:
        if not self._stopped:
            return
        self._stopped = False
        self._check_at_ns = at_ns + self.check_ns
        self.loaded = self.epoch
        if self.epoch:
            self.want = ""

    def _back(self) -> list[WriteTurn]:
        """The load did not happen: the SVM still runs the state of the epoch before."""
        if not self._stopped:
            return []
        self._stopped = False
        self.loads -= 1
        self.epoch = self.loaded = self.before
        return [WriteTurn(self.epoch, Phase.OPEN)]

    def _lose(self, why: str) -> list[WriteTurn]:
        self.epoch, self.loaded, self.want = 0, 0, why
        return [WriteTurn(0, Phase.OPEN)]
