# SPDX-License-Identifier: GPL-2.0-only
"""Both hosts' programs over a real link, through checkpoints, deaths and new pairings.

Hypothesis draws connections, who sends what when, epochs and failures. The two VMs choose their own
sequence numbers and timestamps; a checkpoint copies the primary's into the secondary's; after
a death the other VM goes on, and gets a new secondary that is a copy of it. Held against bytes
and positions:

- whatever a client was given, each VM that may have to go on alone has said, at the same place;
  and what a client was acknowledged, it has received (I1, I2);
- whatever a VM is shown is in its own numbers, what a client is shown in those it began with:
  SEQ, ACK, SACK, timestamps, for the connection's life, whichever host serves;
- at the end the survivor resends, and the client has all of its bytes.

Two connections share their addresses and ports and differ only in the NIC.
"""

from __future__ import annotations

import copy
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Hypotheses
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from colo_ebpf.lab import frames
from colo_ebpf.model import Mode, Phase, VmRole
from tests.bpf.hosts import Host, TwoHosts
from tests.capabilities import require

_SEGMENT = 1400
_MOST = 4  # connections
_ROUNDS = 2  # one anchors a connection that a new primary does not know, one releases it
_EDGES = [1000, 2**31 - 300, 2**32 - 2, 2**32 - 700]
ISNS = st.one_of(st.sampled_from(_EDGES), st.integers(0, 2**32 - 1))
CLOCKS = st.one_of(st.sampled_from(_EDGES), st.integers(0, 2**32 - 1))
LENGTHS = st.one_of(st.integers(1, 24), st.integers(1, _SEGMENT))
WHICH = st.integers(0, _MOST - 1)


def _before(a: int, b: int) -> bool:
    return (a - b) % 2**32 > 2**31


@dataclass
class End:
    """One connection inside a VM. Positions count from 0 behind the SYN."""

    isn: int
    clock: int  # its timestamps: this and the ticks
    app: bytearray = field(default_factory=bytearray)
    sent: int = 0
    received: int = 0  # the client's bytes
    echo: int = 0  # the client's last timestamp
    stamped: int | None = None  # the highest timestamp sent in this epoch
    open: bool = False  # the client's first ACK has come


@dataclass
class Connection:
    """One connection as its client knows it."""

    port: int
    nic: int
    isn: int  # the client's
    ends: dict[int, End]  # by host
    base: int | None = None  # the VM's ISN in the client's numbers
    received: dict[int, int] = field(default_factory=dict)
    sent: int = 0
    acknowledged: int = 0  # of the VM's bytes
    recent: int = 0  # the VM's last timestamp seen
    echoed: int | None = None

    @property
    def in_order(self) -> int:
        """Bytes of the VM without a gap."""
        return next(p for p in range(len(self.received) + 1) if p not in self.received)


class Pair(RuleBasedStateMachine):
    """`self.p` serves; `self.s` is its replica, or nobody."""

    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        require("root", "bpf")
        self._stack = ExitStack()
        self.two = self._stack.enter_context(TwoHosts())
        self.p: Host = self.two.hosts[0]
        self.s: Host | None = None
        self.epoch, self.vni, self.tick = 0, 6, 0
        self.connections: list[Connection] = []
        self._pairing = False  # withheld: a replica is being made
        self._alone = False  # what comes now was just sent by the only VM
        self.p.take_role(VmRole.PRIMARY)
        self.p.plane.set_mode(Mode.SOLO)
        self._make_pair()

    @invariant()
    def count(self) -> None:
        """Time goes on."""
        Pair.steps += 1
        self.tick += 3

    # -- connections -----------------------------------------------------------------------

    @precondition(lambda self: len(self.connections) < _MOST)
    @rule(client=ISNS, isns=st.tuples(ISNS, ISNS), clocks=st.tuples(CLOCKS, CLOCKS))
    def a_client_connects(
        self, client: int, isns: tuple[int, int], clocks: tuple[int, int]
    ) -> None:
        """Both VMs accept, the primary first or last; the client may take its time to answer."""
        number = len(self.connections)
        ends = {host.number: End(isns[i], clocks[i]) for i, host in enumerate(self._vms())}
        one = Connection(4711 + number // 2, number % 2, client, ends)
        self.connections.append(one)
        options = frames.timestamps(self.tick, 0)
        syn = frames.of_client(client, flags=frames.SYN, port=one.port, options=options)
        self.p.clients[one.nic].send(syn)
        self._settle()
        for host in self._vms()[:: 1 if number % 2 else -1]:
            assert any(frames.parse_to_vm(f) for f in host.vm_gets(one.nic)), "no SYN came"
            self.tick += 1
            self._syn_ack(one, host)
        assert one.base == ends[self.p.number].isn, "the client was not answered"

    def _syn_ack(self, one: Connection, host: Host) -> None:
        end = one.ends[host.number]
        end.stamped = end.clock + self.tick
        frame = frames.of_vm(
            end.isn,
            ack=one.isn + 1,
            flags=frames.SYN | frames.ACK,
            port=one.port,
            options=frames.timestamps(end.stamped, self.tick),
        )
        host.vm_sends(one.nic, frame)
        self._settle()

    @precondition(lambda self: self.connections)
    @rule(which=WHICH, count=st.integers(0, 500), hole=st.integers(0, 2))
    def the_client_sends(self, which: int, count: int, hole: int) -> None:
        """Bytes or none, an ACK of all it has, and at times a SACK block beyond."""
        one = self._one(which)
        have = one.in_order
        options = frames.timestamps(self.tick, one.recent)
        block = None
        if hole:
            block = (self._outside(one, have + 100 * hole), self._outside(one, have + 200 * hole))
            options += frames.sack(*block)
        seq = one.isn + 1 + one.sent
        ack = self._outside(one, have)
        data = bytes(count)
        frame = frames.of_client(seq, data, ack, port=one.port, options=options)
        one.echoed, one.acknowledged = one.recent, have
        self.p.clients[one.nic].send(frame)
        self._settle()
        for host in self._vms():
            shown = [s for s in map(frames.parse_to_vm, host.vm_gets(one.nic)) if s]
            mine = [s for s in shown if s.port == one.port]
            assert len(mine) == 1, f"{len(mine)} frames came to the VM"
            self._vm_looks(one, host, mine[0], have, block)
        one.sent += count

    def _vm_looks(
        self,
        one: Connection,
        host: Host,
        shown: frames.Segment,
        have: int,
        block: tuple[int, int] | None,
    ) -> None:
        """What a VM is shown is in its own numbers."""
        end = one.ends[host.number]
        assert shown.sums_right
        assert shown.seq == (one.isn + 1 + one.sent) % 2**32
        assert shown.ack == (end.isn + 1 + have) % 2**32, "an ACK in foreign numbers"
        if block is not None:
            assert one.base is not None
            moved = [(edge - one.base + end.isn) % 2**32 for edge in block]
            assert frames.sacked(shown.options) == tuple(moved), "SACK in foreign numbers"
        stamps = frames.stamps(shown.options)
        assert stamps is not None and stamps[0] == self.tick
        if end.stamped is not None:
            assert not _before(end.stamped, stamps[1]), "an echo of what it has not sent yet"
        if not end.open and end.stamped is not None:
            assert stamps[1] == end.stamped % 2**32, "the handshake's echo"
        end.open, end.echo = True, self.tick
        if end.received == one.sent:
            end.received += len(shown.payload)

    # -- what the VMs do -------------------------------------------------------------------

    @precondition(lambda self: self._open())
    @rule(which=WHICH, count=st.integers(1, 40), seed=st.integers(0, 255))
    def they_differ(self, which: int, count: int, seed: int) -> None:
        """The applications write something else."""
        for at, end in enumerate(self._one(which).ends.values()):
            end.app += bytes((seed + i + at) % 256 for i in range(count))

    @precondition(lambda self: self._open())
    @rule(which=WHICH, count=LENGTHS, seed=st.integers(0, 255), second=st.booleans())
    def a_vm_sends(self, which: int, count: int, seed: int, second: bool) -> None:
        """New bytes; if there are none both applications write the same."""
        one = self._one(which)
        host = self.s if second and self.s else self.p
        end = one.ends[host.number]
        if end.sent == len(end.app):
            data = bytes((seed + 31 * i + i // 256) % 256 for i in range(count))
            for each in one.ends.values():
                each.app += data
        self._vm_sends(one, host, end.sent, count)

    @precondition(lambda self: self._open())
    @rule(which=WHICH, back=st.integers(1, 3000), count=LENGTHS, second=st.booleans())
    def a_vm_resends(self, which: int, back: int, count: int, second: bool) -> None:
        """From somewhere before."""
        one = self._one(which)
        host = self.s if second and self.s else self.p
        self._vm_sends(one, host, max(0, one.ends[host.number].sent - back), count)

    @precondition(lambda self: self._open())
    @rule(which=WHICH, second=st.booleans())
    def a_vm_acknowledges(self, which: int, second: bool) -> None:
        """A pure ACK."""
        one = self._one(which)
        host = self.s if second and self.s else self.p
        self._vm_sends(one, host, one.ends[host.number].sent, 0)

    def _vm_sends(self, one: Connection, host: Host, start: int, count: int) -> None:
        end = one.ends[host.number]
        if not end.open:
            return
        data = bytes(end.app[start : start + count])
        end.sent = max(end.sent, start + len(data))
        end.stamped = end.clock + self.tick
        frame = frames.of_vm(
            end.isn + 1 + start,
            data,
            one.isn + 1 + end.received,
            port=one.port,
            options=frames.timestamps(end.stamped, end.echo),
        )
        host.vm_sends(one.nic, frame)
        self._alone = self.s is None
        self._settle()
        self._alone = False

    # -- what the control planes do ----------------------------------------------------------

    @precondition(lambda self: self.s)
    @rule(late=st.booleans())
    def checkpoint(self, late: bool) -> None:
        """The secondary's cell may be written after the primary's."""
        assert self.s is not None
        self.p.plane.set_turn(self.epoch, Phase.TURNING)
        self._settle()
        self.epoch += 1
        cells = [lambda: self.s.plane.set_turn(self.epoch, Phase.OPEN)]  # type: ignore[union-attr]
        cells.append(lambda: self.p.plane.set_turn(self.epoch, Phase.OPEN))
        for write in cells[::-1] if late else cells:
            write()
        self._load()
        self.p.flush()
        self._settle()

    def _load(self) -> None:
        """The SVM becomes what the PVM is."""
        assert self.s is not None
        for one in self.connections:
            state = one.ends[self.p.number]
            state.stamped = None  # of this epoch
            one.ends[self.s.number] = copy.deepcopy(state)

    @precondition(lambda self: self.s)
    @rule()
    def the_primary_dies(self) -> None:
        """Its replica serves, in the numbers the clients know."""
        assert self.s is not None
        dead, self.p, self.s = self.p, self.s, None
        dead.plane.set_mode(Mode.WITHHOLD)
        self.p.plane.keep_offsets(self.epoch)
        self.p.plane.set_turn(0, Phase.OPEN)
        self.p.plane.set_mode(Mode.SOLO)
        self._forget(dead)
        self.p.repeat()
        self._settle()

    @precondition(lambda self: self.s)
    @rule()
    def the_secondary_dies(self) -> None:
        """The primary goes on alone."""
        assert self.s is not None
        dead, self.s = self.s, None
        dead.plane.set_mode(Mode.WITHHOLD)
        self.p.plane.set_mode(Mode.SOLO)
        self.p.flush()
        self._settle()
        self._forget(dead)

    def _forget(self, dead: Host) -> None:
        for one in self.connections:
            del one.ends[dead.number]

    @precondition(lambda self: self.s is None)
    @rule(count=LENGTHS)
    def a_new_pair_is_made(self, count: int) -> None:
        """In the order of Steps and Core: offsets, roles, mode, checkpoint, primary.

        Before that a disk was copied: no client takes so long to answer a SYN-ACK. Meanwhile the
        VM goes on talking.
        """
        for which, one in enumerate(self.connections):
            if not one.ends[self.p.number].open:
                self.the_client_sends(which, 0, 0)
        self._make_pair(count)

    def _make_pair(self, count: int = 0) -> None:
        other = self.two.hosts[1 - self.p.number]
        entries = self.p.fold_offsets()
        self.p.take_role(VmRole.PRIMARY)
        other.forget()
        other.take_role(VmRole.SECONDARY)
        other.plane.learn_offsets(entries)
        self.vni += 1
        self.two.pair(self.p, other, self.vni)
        other.plane.set_mode(Mode.SECONDARY)
        other.beacon()
        self.p.plane.set_turn(self.epoch, Phase.OPEN)
        self.p.plane.set_mode(Mode.PAIRING)
        self._pairing = True
        for which in range(len(self.connections)):
            self.a_vm_sends(which, count, which, second=False)
        self.s = other
        self.checkpoint(late=False)
        self._pairing = False
        self.p.plane.set_mode(Mode.PRIMARY)
        self.p.flush()
        self._settle()

    # -- checks --------------------------------------------------------------------------------

    def _vms(self) -> list[Host]:
        return [self.p, self.s] if self.s else [self.p]

    def _open(self) -> bool:
        return bool(self.connections)

    def _one(self, which: int) -> Connection:
        return self.connections[which % len(self.connections)]

    def _outside(self, one: Connection, position: int) -> int:
        assert one.base is not None
        return (one.base + 1 + position) % 2**32

    def _settle(self) -> None:
        for nic, frame in self.two.settle():
            segment = frames.parse(frame)
            if segment is not None:
                self._client_looks(self._known(segment.port, nic), segment)

    def _known(self, port: int, nic: int) -> Connection:
        return next(c for c in self.connections if (c.port, c.nic) == (port, nic))

    def _client_looks(self, one: Connection, segment: frames.Segment) -> None:
        """Whatever happens next, each VM could go on from here."""
        assert segment.sums_right
        assert not self._pairing, "it left before the record said that there is a pair"
        stamps = frames.stamps(segment.options)
        assert stamps is not None
        if segment.flags & frames.SYN:
            one.base, one.recent = segment.seq, stamps[0]
            return
        assert one.base is not None
        start = (segment.seq - one.base - 1) % 2**32
        end = start + len(segment.payload)
        ack = (segment.ack - one.isn - 1) % 2**32
        for host in self._vms():
            vm = one.ends[host.number]
            if segment.payload:
                assert vm.sent >= end, "a VM has not said so much"
                assert vm.app[start:end] == segment.payload, "a VM said something else"
            assert vm.received >= ack, "a VM has not received so much"
        # What was held is as old as it is: the client may drop it, as any late copy.
        if self._alone and one.echoed is not None:
            assert not _before(stamps[0], one.echoed), "the client would drop it (PAWS)"
        if start <= one.acknowledged and not _before(stamps[0], one.recent):
            one.recent = stamps[0]
        for position, byte in enumerate(segment.payload, start):
            assert one.received.setdefault(position, byte) == byte

    def teardown(self) -> None:
        """Nothing is lost: the survivor resends, and the client has it all."""
        try:
            self._finish()
        finally:
            self._stack.close()

    def _finish(self) -> None:
        if self.s and self.tick % 2:
            self.the_primary_dies()
        for which, one in enumerate(self.connections):
            if not one.ends[self.p.number].open:
                self.the_client_sends(which, 0, 0)
        for _ in range(_ROUNDS):
            for one in self.connections:
                self._resend(one)
            if self.s:
                self.checkpoint(late=False)
            self.p.flush()
            self._settle()
        for one in self.connections:
            end = one.ends[self.p.number]
            assert one.in_order >= end.sent, f"{one.in_order} of {end.sent} bytes came"
            assert bytes(one.received[p] for p in range(end.sent)) == end.app[: end.sent]

    def _resend(self, one: Connection) -> None:
        end = one.ends[self.p.number]
        for start in range(one.in_order, end.sent, _SEGMENT):
            self._vm_sends(one, self.p, start, min(_SEGMENT, end.sent - start))


Pair.TestCase.settings = settings(
    max_examples=int(os.environ.get("COLO_PAIR_EXAMPLES", "110")),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    derandomize="COLO_PAIR_EXAMPLES" not in os.environ,
    phases=[Hypotheses.generate] if "COLO_MODEL_QUICK" in os.environ else list(Hypotheses),
)
TestPair = pytest.mark.timeout(1800)(Pair.TestCase)


def test_that_were_four_thousand_steps() -> None:
    """Of all histories together."""
    if "COLO_PAIR_EXAMPLES" not in os.environ:
        assert Pair.steps >= 4_000
