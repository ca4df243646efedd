# SPDX-License-Identifier: GPL-2.0-only
"""The shipped programs on real hooks against the reference model, under random schedules.

Hypothesis draws what both VMs send and when: any segmentation, retransmissions, losses on the
link, frames of past epochs, diverging bytes, turns that are proven and turns that are not, going
solo. Everything the client receives is held against the model. At the end a checkpoint is
loaded and the PVM resends: then the client must have every byte.

The same schedules each time; with COLO_MODEL_EXAMPLES that many new ones (`make soak`).
COLO_MODEL_QUICK leaves a failing one as it is instead of making it small.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Hypotheses
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from colo_ebpf.datapath.bpf.abi import FlowFlag
from colo_ebpf.lab import frames
from colo_ebpf.model import Mode, Phase
from tests.bpf.frames import beacon
from tests.bpf.rig import Rig
from tests.capabilities import require
from tests.model.reference import Reference
from tests.netns import readable

CLIENT_ISN = 5000
_SEGMENT = 1400
SHARES = st.integers(0, 4)  # of what the client has sent, in quarters
LENGTHS = st.one_of(st.integers(1, 24), st.integers(1, _SEGMENT))


class Stream(RuleBasedStateMachine):
    """One connection of a protected VM. `p_` is the PVM's, `s_` the SVM's."""

    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        require("root", "bpf")
        self._stack = ExitStack()
        self.rig = self._stack.enter_context(Rig(large=True))
        self.model = Reference()
        self.p_app, self.s_app = bytearray(), bytearray()
        self.p_sent = self.s_sent = 0
        self.p_ack = self.s_ack = self.client_sent = 0
        self.epoch = 1
        self.open, self.solo = True, False
        self.received: dict[int, int] = {}
        self.datagrams: Counter[int] = Counter()
        self.to_be_cut: set[int] = set()  # bytes of payload of GSO frames

    @initialize(isn=st.sampled_from([1000, 2**31 - 300, 2**32 - 2, 2**32 - 700]))
    def connect(self, isn: int) -> None:
        """A connection both VMs have accepted."""
        self.isn = isn
        rig = self.rig
        rig.pair(self.epoch)
        rig.from_client_raw(frames.of_client(CLIENT_ISN, flags=frames.SYN))
        syn_ack = frames.SYN | frames.ACK
        rig.from_vm_raw(frames.of_vm(isn, ack=CLIENT_ISN + 1, flags=syn_ack))
        rig.from_peer_raw(frames.of_vm(isn + 7, ack=CLIENT_ISN + 1, flags=syn_ack), self.epoch)
        self._settle()

    @invariant()
    def count(self) -> None:
        """Called after each step."""
        Stream.steps += 1

    # -- what the VMs do -----------------------------------------------------------------

    @rule(count=st.integers(1, 40), seed=st.integers(0, 255))
    def they_differ(self, count: int, seed: int) -> None:
        """The applications write something else."""
        self.p_app += bytes((seed + i) % 256 for i in range(count))
        self.s_app += bytes((seed + i + 1) % 256 for i in range(count))

    @rule(count=LENGTHS, seed=st.integers(0, 255), share=SHARES)
    def pvm_sends(self, count: int, seed: int, share: int) -> None:
        """New bytes; if its application has none to send, both applications write the same."""
        if self.p_sent == len(self.p_app):
            data = bytes((seed + 31 * i + i // 256) % 256 for i in range(count))
            self.p_app += data
            self.s_app += data
        self.p_ack = max(self.p_ack, self.client_sent * share // 4)
        self._pvm(self.p_sent, count)

    @rule(back=st.integers(1, 3000), count=LENGTHS)
    def pvm_resends(self, back: int, count: int) -> None:
        """From somewhere before."""
        self._pvm(max(0, self.p_sent - back), count)

    @rule(count=LENGTHS, share=SHARES)
    def svm_sends(self, count: int, share: int) -> None:
        """New bytes."""
        self.s_ack = max(self.s_ack, self.client_sent * share // 4)
        self._svm(self.s_sent, count, self.epoch)

    @rule(back=st.integers(1, 3000), count=LENGTHS)
    def svm_resends(self, back: int, count: int) -> None:
        """From somewhere before."""
        self._svm(max(0, self.s_sent - back), count, self.epoch)

    @rule(count=st.integers(1449, 12000), mss=st.sampled_from([536, 1000, 1448]), share=SHARES)
    def pvm_leaves_segmentation_to_its_nic(self, count: int, mss: int, share: int) -> None:
        """A GSO frame; the SVM's application writes the same."""
        if self.p_sent == len(self.p_app):
            data = bytes((31 * i + i // 256) % 256 for i in range(count))
            self.p_app += data
            self.s_app += data
        self.p_ack = max(self.p_ack, self.client_sent * share // 4)
        self._pvm(self.p_sent, count, mss)

    @rule(count=st.integers(1449, 12000), mss=st.sampled_from([536, 1000, 1448]), share=SHARES)
    def svm_leaves_segmentation_to_its_nic(self, count: int, mss: int, share: int) -> None:
        """A GSO frame; it may be the row of frames that are held, and leave itself."""
        self.s_ack = max(self.s_ack, self.client_sent * share // 4)
        self._svm(self.s_sent, count, self.epoch, mss)

    @rule(share=SHARES)
    def svm_sends_what_is_held(self, share: int) -> None:
        """Its frame ends where the PVM's last one does."""
        self.s_ack = max(self.s_ack, self.client_sent * share // 4)
        self._svm(self.s_sent, max(0, self.p_sent - self.s_sent), self.epoch, 1448)

    @rule(first=LENGTHS, second=LENGTHS)
    def the_link_reorders(self, first: int, second: int) -> None:
        """Two segments of the SVM arrive the wrong way round; the first comes twice."""
        start = self.s_sent
        self._svm(start + first, second, self.epoch)
        self._svm(start, first, self.epoch)
        self._svm(start, first, self.epoch)

    @rule(number=st.integers(1, 4))
    def pvm_sends_a_datagram(self, number: int) -> None:
        """One of a few, so that copies meet."""
        self.model.pvm_sends_datagram(number)
        self.rig.from_vm_raw(frames.datagram(number))
        self._drain()

    @precondition(lambda self: self.open and not self.solo)
    @rule(number=st.integers(1, 4), late=st.booleans())
    def svm_sends_a_datagram(self, number: int, late: bool) -> None:
        """In this epoch, or held up since the one before."""
        epoch = self.epoch - late
        self.model.svm_sends_datagram(number, epoch)
        self.rig.from_peer_raw(frames.datagram(number), epoch)
        self._drain()

    @rule()
    def client_acknowledges(self) -> None:
        """All it has in order."""
        count = next(p for p in range(len(self.received) + 1) if p not in self.received)
        seq = CLIENT_ISN + 1 + self.client_sent
        self.rig.from_client_raw(frames.of_client(seq, ack=self.isn + 1 + count))
        self._drain()

    @rule(count=LENGTHS)
    def the_link_loses(self, count: int) -> None:
        """The SVM sent, nothing came."""
        self.s_sent = min(self.s_sent + count, len(self.s_app))

    @precondition(lambda self: self.open and not self.solo)
    @rule(back=st.integers(1, 3000), count=LENGTHS)
    def a_clients_wire_loses(self, back: int, count: int) -> None:
        """What both have said comes when the PVM resends: no checkpoint is needed for it.

        But for a mismatch, for which there is one anyway.
        """
        flow = self.rig.flow()
        if flow.flags & FlowFlag.BAD:
            return
        verified = (flow.verified - self.isn - 1) % 2**32
        for position in range(max(0, verified - back), verified):
            self.received.pop(position, None)
        missing = next((p for p in range(verified) if p not in self.received), verified)
        self._pvm(missing, min(count, self.p_sent - missing))
        if missing < verified:
            assert missing in self.received, "the client lacks what both have said"

    @rule(count=LENGTHS, age=st.integers(1, 3))
    def a_late_frame(self, count: int, age: int) -> None:
        """Of a past epoch: whatever it says, it verifies nothing."""
        self._svm(max(0, self.s_sent - count), count, self.epoch - age)

    @rule(count=st.integers(1, 500))
    def client_sends(self, count: int) -> None:
        """Both VMs receive it, each in its own time."""
        self.client_sent += count

    @rule(share=SHARES)
    def pvm_acknowledges(self, share: int) -> None:
        """A pure ACK."""
        self.p_ack = max(self.p_ack, self.client_sent * share // 4)
        self._pvm(self.p_sent, 0)

    @rule(share=SHARES)
    def svm_acknowledges(self, share: int) -> None:
        """A pure ACK."""
        self.s_ack = max(self.s_ack, self.client_sent * share // 4)
        self._svm(self.s_sent, 0, self.epoch)

    # -- what the control plane does -------------------------------------------------------

    @precondition(lambda self: not self.solo)
    @rule(proven=st.booleans(), between=st.integers(0, 60), after=st.integers(0, 60))
    def checkpoint(self, proven: bool, between: int, after: int) -> None:
        """Arm, trigger, stop, turn; the PVM may send until it stops."""
        plane = self.rig.plane
        plane.set_turn(self.epoch, Phase.TURNING)
        self._pvm(self.p_sent, between)
        self._settle()
        plane.set_turn(self.epoch + 1, Phase.TURNING)
        self.epoch += 1
        self.open = proven
        if not proven:  # it ran on, nobody knows since when: nothing verifies
            self.model.svm.clear()
            self.model.epoch = -1
            self._pvm(self.p_sent, after)
            return
        self.model.epoch = self.epoch - 1
        self.model.turned()
        self.s_app, self.s_sent, self.s_ack = bytearray(self.p_app), self.p_sent, self.p_ack
        plane.set_turn(self.epoch, Phase.OPEN)
        self._pvm(self.p_sent, after)
        plane.flush()
        self._drain()

    @precondition(lambda self: self.open)
    @rule()
    def flushes(self) -> None:
        """At any time: what is neither verified nor of a past epoch stays."""
        self.rig.plane.flush()
        self._drain()

    @rule()
    def beats(self) -> None:
        """The peer's plane is heard."""
        self.rig.from_peer_raw(bytes(beacon()), self.epoch)

    @precondition(lambda self: self.epoch > 2 and len(self.p_app) > 2000)
    @rule()
    def goes_solo(self) -> None:
        """The pair ends; everything leaves."""
        self.model.goes_solo()
        self.solo = True
        self.rig.plane.set_mode(Mode.SOLO)
        self.rig.plane.flush()
        self._drain()

    # -- frames and checks -----------------------------------------------------------------

    def _pvm(self, start: int, count: int, segment_bytes: int = 0) -> None:
        data = bytes(self.p_app[start : start + count])
        self.model.pvm_sends(start, data, self.p_ack)
        self.p_sent = max(self.p_sent, start + len(data))
        ack = CLIENT_ISN + 1 + self.p_ack
        seq = self.isn + 1 + start
        if segment_bytes and len(data) > segment_bytes:
            self.to_be_cut.add(len(data))
            self.rig.from_vm_vnet(frames.offloaded(seq, data, ack, segment_bytes))
        else:
            for at in range(0, max(len(data), 1), _SEGMENT):
                part = data[at : at + _SEGMENT]
                self.rig.from_vm_raw(frames.of_vm(seq + at, part, ack))
        self._drain()

    def _svm(self, start: int, count: int, epoch: int, segment_bytes: int = 0) -> None:
        if self.solo or epoch < 1:
            return
        data = bytes(self.s_app[start : start + count])
        if self.open or epoch != self.epoch:
            self.model.svm_sends(start, data, self.s_ack, epoch)
        self.s_sent = max(self.s_sent, start + len(data))
        ack = CLIENT_ISN + 1 + self.s_ack
        seq = self.isn + 1 + start
        if segment_bytes and len(data) > segment_bytes:
            self.to_be_cut.add(len(data))
            self.rig.from_peer_vnet(frames.offloaded(seq, data, ack, segment_bytes), epoch)
        else:
            self.rig.from_peer_raw(frames.of_vm(seq, data, ack), epoch)
        self._drain()

    def _drain(self) -> None:
        while readable(self.rig.client):
            self._check(self.rig.client.recv(65600))

    def _settle(self) -> None:
        for frame in self.rig.to_client_raw():
            self._check(frame)

    def _check(self, frame: bytes) -> None:
        number = frames.datagram_number(frame)
        if number is not None:
            self.datagrams[number] += 1
            complaint = self.model.datagram_complaint(number, self.datagrams[number])
            assert not complaint, complaint
            return
        segment = frames.parse(frame)
        if segment is None or segment.flags & frames.SYN:
            return
        # A GSO frame that passes whole is summed by the NIC, or by the client's side.
        due = len(segment.payload) in self.to_be_cut
        assert segment.sums_right or due, "a checksum is wrong"
        start = (segment.seq - self.isn - 1) % 2**32
        ack = (segment.ack - CLIENT_ISN - 1) % 2**32
        complaint = self.model.complaint(start, segment.payload, ack)
        assert not complaint, complaint
        for position, byte in enumerate(segment.payload, start):
            self.received[position] = byte
        if not self.solo:  # whatever happens next, the SVM could go on from here
            end = start + len(segment.payload)
            assert self.s_sent >= end or start == end, "the SVM has not said so much"
            assert self.s_app[start:end] == segment.payload, "the SVM said something else"
            assert self.s_ack >= ack, "the SVM has not received so much"

    def teardown(self) -> None:
        """Nothing is lost: after a loaded checkpoint and the guest's resending it is all there."""
        try:
            if hasattr(self, "isn"):
                self._finish()
        finally:
            self._stack.close()

    def _finish(self) -> None:
        if not self.solo:
            self.checkpoint(True, 0, 0)
        self.rig.plane.flush()
        self._settle()
        held = self.rig.plane.held()
        assert held.frames == 0, f"{held.frames} frames are still held"
        missing = [p for p in range(self.p_sent) if p not in self.received]
        for start in range(0, self.p_sent, _SEGMENT):
            if any(start <= p < start + _SEGMENT for p in missing):
                self._pvm(start, min(_SEGMENT, self.p_sent - start))
        self._settle()
        lost = [p for p in range(self.p_sent) if p not in self.received]
        assert not lost, f"bytes {lost[:5]}... never reached the client"


Stream.TestCase.settings = settings(
    max_examples=int(os.environ.get("COLO_MODEL_EXAMPLES", "2000")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    derandomize="COLO_MODEL_EXAMPLES" not in os.environ,
    phases=[Hypotheses.generate] if "COLO_MODEL_QUICK" in os.environ else list(Hypotheses),
)
TestStream = pytest.mark.timeout(1800)(Stream.TestCase)


def test_that_were_a_hundred_thousand_steps() -> None:
    """Of all histories together."""
    if "COLO_MODEL_EXAMPLES" not in os.environ:
        assert Stream.steps >= 100_000
