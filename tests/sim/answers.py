# SPDX-License-Identifier: GPL-2.0-only
"""Clients of a simulated pair: what the PVM answers is held until the SVM has said the same.

Clients wait for their answers. The SVM is as late as it is told to be, later soon after a load, and
now and then says something else, or nothing. Its vCPU works while it has an answer to give.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from colo_ebpf.control.checkpoint.watch import Work
from colo_ebpf.model import (
    FRESH_NS,
    FlushReport,
    Lateness,
    Mode,
    Phase,
    PlaneEvent,
    PlaneEventKind,
    Waiting,
)
from tests.sim.host import Host
from tests.sim.world import MS, World

_BUCKETS = 32
_POLL_NS = 2 * MS
_SERVICE_NS = 2 * MS


@dataclass(slots=True)
class Manners:
    """Of the SVM. Times in milliseconds: between the two, at random."""

    late_ms: tuple[float, float] = (0.5, 5)
    loaded_ms: tuple[float, float] = (80, 150)  # for the first answers after a load
    slow_for_ms: float = 150  # after a load
    differs: float = 0.0  # of its answers
    silent: float = 0.0  # answers it does not give, and is idle
    in_vain: float = 0.0  # answers it does not give, while it works for ever
    starved: bool = False  # what it is late for is that it has no processor


@dataclass(eq=False, slots=True)
class _Frame:
    client: int
    at_ns: int  # in the primary's time
    epoch: int


@dataclass
class Answers:
    """Everything between the clients and both VMs. `begin` once the pair is protected."""

    world: World
    primary: Host
    secondary: Host
    manners: Manners
    clients: int = 1
    given: int = 0
    waits_ns: list[int] = field(default_factory=list)
    held: list[_Frame] = field(default_factory=list)
    heads: int = 0
    compared: int = 0
    late: list[list[int]] = field(default_factory=lambda: [[0] * _BUCKETS, [0] * _BUCKETS])
    armed: bool = True
    loaded_ns: int = 0
    _ran_ns: int = 0
    _busy_until_ns: int = 0
    _seen_ns: int = 0

    def begin(self) -> None:
        """From now on clients ask."""
        self.primary.plane.answers = self
        assert self.secondary.vm is not None
        self.secondary.vm.answers = self
        self._seen_ns = self.world.now_ns
        for client in range(self.clients):
            self._ask(client)

    # -- the clients and both VMs ----------------------------------------------------------------

    def _ask(self, client: int) -> None:
        service_ns = _SERVICE_NS + self.world.delay_ns(0, 1)
        self.world.after(service_ns, lambda: self._pvm_answers(client))

    def _pvm_answers(self, client: int) -> None:
        vm = self.primary.vm
        if vm is None or vm.stopped:
            self.world.after(_POLL_NS, lambda: self._pvm_answers(client))
            return
        turn = self.primary.plane.turn()
        frame = _Frame(client, self.primary.now_ns, turn.epoch)
        self.held.append(frame)
        if self.primary.plane.mode() is Mode.SOLO:
            self._leaves(frame)
            return
        self.heads += 1
        self._svm_begins(frame)
        if self.armed:
            self.armed = False
            self._tell(PlaneEventKind.HELD)

    def _svm_begins(self, frame: _Frame) -> None:
        manners, random = self.manners, self.world.random
        drawn = random.random()
        if drawn < manners.silent:
            return
        if drawn < manners.silent + manners.in_vain:
            self._work_until(self.world.now_ns + 10_000 * MS)
            return
        late_ns = self.world.delay_ns(*manners.late_ms)
        if self.primary.now_ns - self.loaded_ns < manners.slow_for_ms * MS:
            late_ns = self.world.delay_ns(*manners.loaded_ms)
        differs = random.random() < manners.differs
        vm = self.secondary.vm
        loads = vm.loaded if vm is not None else 0
        late_ns = max(late_ns, self._busy_until_ns - self.world.now_ns)  # one after the other
        self._work_until(self.world.now_ns + late_ns)
        self.world.after(late_ns, lambda: self._svm_answers(frame, loads, differs))

    def _svm_answers(self, frame: _Frame, loads: int, differs: bool) -> None:
        vm, turn = self.secondary.vm, self.primary.plane.turn()
        if vm is None or vm.stopped or vm.loaded != loads or frame not in self.held:
            return  # what it was about to say is gone with the state it was in
        if turn.phase is not Phase.OPEN or turn.epoch != frame.epoch:
            return
        if differs:
            self._tell(PlaneEventKind.MISMATCH)
            return
        self.compared += 1
        late_ns = self.primary.now_ns - frame.at_ns
        fresh = self.primary.now_ns - self.loaded_ns < FRESH_NS
        self.late[fresh][min((late_ns >> 10).bit_length(), _BUCKETS - 1)] += 1
        self._leaves(frame)

    def _leaves(self, frame: _Frame) -> None:
        self.held.remove(frame)
        self.given += 1
        self.waits_ns.append(self.primary.now_ns - frame.at_ns)
        self._ask(frame.client)

    def _tell(self, kind: PlaneEventKind) -> None:
        host = self.primary
        event = PlaneEvent(kind, host.now_ns, host.plane.turn().epoch, "", 0, 0, 0, "")

        def arrive() -> None:
            if host.core is not None:
                host.core.plane_event(event, host.now_ns)

        self.world.after(self.world.delay_ns(0.05, 0.5), lambda: host.deliver(arrive))

    # -- what the core sees ----------------------------------------------------------------------

    def flush(self) -> FlushReport:
        """What was held in past epochs leaves; everything, once the VM is alone."""
        mode, epoch = self.primary.plane.mode(), self.primary.plane.turn().epoch
        if mode not in (Mode.PRIMARY, Mode.SOLO):
            return FlushReport(0, len(self.held))
        due = [frame for frame in self.held if mode is Mode.SOLO or frame.epoch != epoch]
        for frame in due:
            self._leaves(frame)
        return FlushReport(len(due), 0)

    def waiting(self) -> Waiting:
        """What is held."""
        oldest_ns = min((frame.at_ns for frame in self.held), default=None)
        return Waiting(oldest_ns, oldest_ns, frames=len(self.held), compared=self.compared)

    def ages(self) -> tuple[int, int]:
        """Of all that is held."""
        return len(self.held), sum(frame.at_ns for frame in self.held)

    def lateness(self) -> Lateness:
        """As the data plane counts it."""
        return Lateness(tuple(self.late[0]), tuple(self.late[1]))

    # -- the SVM's processor ---------------------------------------------------------------------

    def _work_until(self, until_ns: int) -> None:
        self._account()
        self._busy_until_ns = max(self._busy_until_ns, until_ns)

    def _account(self) -> None:
        now_ns = self.world.now_ns
        ran_ns = max(0, min(now_ns, self._busy_until_ns) - self._seen_ns)
        self._ran_ns += 0 if self.manners.starved else ran_ns
        self._seen_ns = now_ns

    def loaded(self) -> None:
        """The SVM has the PVM's state: it has forgotten what it was about to say."""
        self._account()
        self._busy_until_ns = self.world.now_ns

    def work(self) -> Work:
        """Of its one vCPU."""
        self._account()
        return Work((self._ran_ns,), ready=self.world.now_ns < self._busy_until_ns)
