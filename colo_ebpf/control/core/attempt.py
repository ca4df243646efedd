# SPDX-License-Identifier: GPL-2.0-only
"""The attempt under way: its task, the step that runs, what is done and what failed. Pure."""

from __future__ import annotations

from colo_ebpf.control.decision.actions import (
    EnterColo,
    StartVm,
    Step,
    Synchronise,
    Task,
    TaskKind,
)
from colo_ebpf.control.decision.snapshot import Failure

_INTO_A_PAIR = (Synchronise, EnterColo, StartVm)


class Attempt:
    """A step counts as done for the attempt it began in, and for no later one."""

    def __init__(self) -> None:
        self.task: Task | None = None
        self.running: Step | None = None
        self._cancelled = False
        self.done: set[type] = set()
        self.failure: Failure | None = None
        self._number = self._began_in = 0

    @property
    def pairs(self) -> bool:
        """A secondary is being made on the other host, or was."""
        return self.task is not None and self.task.kind is TaskKind.PAIR

    @property
    def joins(self) -> bool:
        """A secondary is being made here."""
        return self.task is not None and self.task.kind is TaskKind.JOIN

    def begin(self) -> None:
        """Another one: all of its steps are still to be done."""
        self.done.clear()
        self._number += 1

    def start(self, step: Step) -> None:
        """This step runs now."""
        self.running, self._began_in = step, self._number

    def ended(self) -> bool:
        """The step that ran has ended. True: it had been cancelled."""
        self.running, cancelled, self._cancelled = None, self._cancelled, False
        return cancelled

    def cancel(self) -> bool:
        """If a step into a pair runs, it has lost its purpose. True: it is to be given up now."""
        if self._cancelled or not isinstance(self.running, _INTO_A_PAIR):
            return False
        self._cancelled = True
        return True

    def failed(self, step: Step, error: str, now_ns: int) -> None:
        """What failed last is what a decision looks at."""
        self.failure = Failure(step, error, now_ns)

    def succeeded(self, step: Step) -> None:
        """What failed of its kind before counts no more."""
        if self.failure is not None and type(self.failure.step) is type(step):
            self.failure = None

    def mark_done(self, step: Step) -> None:
        """Nothing but that is to be remembered of it."""
        if self._began_in == self._number:
            self.done.add(type(step))
