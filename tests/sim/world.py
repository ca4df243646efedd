# SPDX-License-Identifier: GPL-2.0-only
"""Virtual time, the wires between two hosts, and the arbiter. One seed, one history."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.record import Kind, Record
from colo_ebpf.control.decision.snapshot import FenceWhen
from colo_ebpf.control.peer.state import Path
from tests.deadlines import DEADLINES

if TYPE_CHECKING:
    from tests.sim.host import Host
    from tests.sim.vm import ToyVm

MS = 1_000_000
TIMING = replace(
    DEADLINES,
    heartbeat_ns=50 * MS,
    peer_timeout_ns=250 * MS,
    qmp_timeout_ns=500 * MS,
    checkpoint_timeout_ns=1_000 * MS,
    daemon_grace_ns=2_000 * MS,
)


@dataclass
class World:
    """Everything outside the hosts."""

    seed: int
    now_ns: int = 1_000_000 * MS
    hosts: dict[str, Host] = field(default_factory=dict)
    cut: set[tuple[str, Path]] = field(default_factory=set)  # (from, path): one way each
    frames_cut: set[str] = field(default_factory=set)  # of these hosts' planes none arrives
    arbiter_cut: set[str] = field(default_factory=set)
    loss: float = 0.0
    bad_loads: float = 0.01  # that leave new RAM on the old disk
    lost_vms: int = 0
    fence: FenceWhen = FenceWhen.OFF
    fence_works: bool = True  # else it fails at random
    primary: str = ""  # of the last pair
    fenced: set[str] = field(default_factory=set)  # since the last claim: switched off by the other
    given: bool = False  # the last claim was written by its loser
    shares_disk: bool = False
    reserves: bool = False  # the disk refuses what a host writes that has not reserved it
    holder: str = ""  # who has
    between: str = ""  # who takes over is writing to the shared disk
    wanted: bool = False  # an operator has asked to start a VM that is off
    client_seen: int = 0  # the newest state a client was ever told of without a replica
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self.record: Record = record.sealed(record.cold("a"), "first")

    @property
    def tells_passes(self) -> bool:
        """QEMU 11 sends no MIGRATION_PASS in a checkpoint: half of the histories are of such."""
        return self.seed % 2 == 0

    def after(self, ns: int, do: Callable[[], None]) -> None:
        """Do it later."""
        heapq.heappush(self._heap, (self.now_ns + ns, next(self._serial), do))

    def run(self, ns: int, check: Callable[[], None]) -> None:
        """Let time pass; `check` after every event."""
        end = self.now_ns + ns
        while self._heap and self._heap[0][0] <= end:
            self.now_ns, _, do = heapq.heappop(self._heap)
            do()
            check()
        self.now_ns = end

    def delay_ns(self, low_ms: float, high_ms: float) -> int:
        """A random span."""
        return int(self.random.uniform(low_ms, high_ms) * MS)

    def note(self, text: str) -> None:
        """For the report of a failing seed."""
        self.log.append(f"{(self.now_ns - 1_000_000 * MS) / 1e9:8.3f} {text}")

    def link_up(self) -> bool:
        """QEMU's connections go over it: both ways are needed."""
        whole = not any(path is Path.LINK for _, path in self.cut)
        return whole and all(h.up and not h.paused for h in self.hosts.values())

    def carries_frames(self, source: str) -> bool:
        """Of this host's plane, now: of two equal ones at least one arrives."""
        cut = (source, Path.LINK) in self.cut or source in self.frames_cut
        return not cut and (not self.loss or self.random.random() >= self.loss**2)

    def send(self, source: str, path: Path, datagram: bytes) -> None:
        """A datagram to the other host; lost, late, or refused by a host without a daemon."""
        target = self.hosts["b" if source == "a" else "a"]
        if (source, path) in self.cut or self.random.random() < self.loss or not target.up:
            return
        self.after(self.delay_ns(0.05, 3), lambda: target.datagram(datagram, path))

    # -- a shared disk -------------------------------------------------------------------

    def writes_alone(self, vm: ToyVm, *, takes_over: bool) -> None:
        """From here on the disk is of no use to the other VM."""
        if not self.shares_disk:
            return
        entitled = self.record.kind is Kind.ACTIVE and self.record.owner == vm.instance
        assert entitled, f"{vm.instance} writes alone while {self.record.describe()}"
        self.may_write(vm.host)
        if takes_over:
            other = vm.host.other.vm
            off = other is None or not other.acts
            assert off or self.reserves, "two VMs write to one disk"
            self.between = vm.instance

    def may_write(self, host: Host) -> None:
        """What the disk would refuse is not begun."""
        held = not self.reserves or self.holder == host.name
        assert held, f"{host.name} writes, and the disk is reserved for {self.holder or 'nobody'}"

    def reserve(self, host: Host) -> None:
        """The other one's VM finds that it cannot write, if it does."""
        self.holder = host.name
        self.note(f"RESERVED for {host.name}")
        self.after(self.delay_ns(0, 2_000), lambda: self._refused(host.other))

    def _refused(self, host: Host) -> None:
        vm = host.vm
        if self.holder != host.name and vm is not None and not vm.replica:
            vm.waits_for_disk()

    # -- the arbiter ---------------------------------------------------------------------

    def swap(self, by: str, old: Record, new: Record) -> Record:
        """Linearizable compare-and-swap; the newest record tells who won."""
        if (old.generation, old.nonce) == (self.record.generation, self.record.nonce):
            self._check_fence(by, new)
            self._check_off(by, new)
            self.record = record.sealed(new, f"{self.random.getrandbits(64):x}")
            self.note(f"record {self.record.generation}: {self.record.describe()}")
        return self.record

    def _check_off(self, by: str, new: Record) -> None:
        """Only what its own guest ended is off, and only an operator starts it again."""
        if new.kind is Kind.OFF:
            vm = self.hosts[by].vm
            assert vm is not None, "called off without a VM"
            assert (vm.instance, vm.ended) == (self.record.owner, True), "called off while it ran"
        elif self.record.kind is Kind.OFF:
            assert self.wanted, "a VM that was powered off is started by itself"
            self.wanted = False

    def _check_fence(self, by: str, new: Record) -> None:
        """Who goes on alone unasked has turned the other off since it claimed. Not so a primary
        with one disk: the loser only reads it."""
        if self.record.kind is Kind.PAIRED:
            self.primary = self.record.owner
        if new.kind is Kind.CLAIMED:
            self.fenced.clear()
            self.given = self.record.kind is Kind.PAIRED and by != record.host_of(new.owner)
        claimed = self.record.kind is Kind.CLAIMED and self.record.other != ""
        harmless = self.shares_disk and new.owner == self.primary
        unasked = claimed and not self.given and not harmless
        if new.kind is Kind.ACTIVE and unasked and self.fence is FenceWhen.BEFORE_SOLO:
            loser = record.host_of(self.record.other)
            assert loser in self.fenced, f"active while {loser} was not fenced"
