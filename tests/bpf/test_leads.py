# SPDX-License-Identifier: GPL-2.0-only
"""One VM is far ahead of the other: what is remembered of it suffices, whichever it is."""

from __future__ import annotations

import random

import pytest

from colo_ebpf.datapath.bpf import abi
from colo_ebpf.lab import frames
from tests.bpf.rig import Rig
from tests.capabilities import require

ISN, CLIENT_ISN = 1000, 5000


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf")


class Stream:
    """A connection whose bytes are sent in the sizes a test wants."""

    def __init__(self, rig: Rig, total: int) -> None:
        self.rig, self.data = rig, random.Random(total).randbytes(total)
        self.received = bytearray()
        rig.pair()
        rig.from_client_raw(frames.of_client(CLIENT_ISN, flags=frames.SYN))
        for isn, send in ((ISN, rig.from_vm_raw), (ISN + 7, self._to_link)):
            send(frames.of_vm(isn, ack=CLIENT_ISN + 1, flags=frames.SYN | frames.ACK))
        rig.to_client_raw()

    def _to_link(self, frame: bytes) -> None:
        self.rig.from_peer_raw(frame, 1)

    def _frame(self, start: int, size: int) -> bytes:
        return frames.of_vm(ISN + 1 + start, self.data[start : start + size], CLIENT_ISN + 1)

    def pvm(self, start: int, end: int, size: int) -> None:
        """The PVM sends [start, end) in segments of `size`."""
        for at in range(start, end, size):
            self.rig.from_vm_raw(self._frame(at, min(size, end - at)))

    def svm(self, start: int, end: int, size: int) -> None:
        """The same of the SVM."""
        for at in range(start, end, size):
            self._to_link(self._frame(at, min(size, end - at)))

    def client_has(self) -> int:
        """How many bytes have arrived, in order and each once."""
        for raw in self.rig.to_client_raw():
            segment = frames.parse(raw)
            if segment is None or not segment.payload:
                continue
            assert segment.seq == ISN + 1 + len(self.received), "out of order, or twice"
            self.received += segment.payload
        assert self.data.startswith(self.received)
        return len(self.received)

    def held(self) -> int:
        """Frames of the PVM that wait."""
        return self.rig.plane.held().frames


@pytest.mark.parametrize(("svm", "pvm"), [(100, 77), (1448, 1000), (1448, 100), (7, 50)])
def test_the_svm_is_far_ahead(svm: int, pvm: int) -> None:
    """Entries lie over all of its lead: what is held is never more than a small part of it."""
    total = 1200 * svm
    with Rig(slots=4096) as rig:
        stream = Stream(rig, total)
        stream.svm(0, total, svm)
        step = total // 24
        for at in range(0, total, step):
            stream.pvm(at, min(at + step, total), pvm)
            assert stream.client_has() >= at + step - total // 12
        assert stream.client_has() == total
        assert stream.held() == 0


def test_the_oldest_entries_stay() -> None:
    """The PVM meets each of the first ends: its frames pass whole, none is copied."""
    with Rig(slots=4096) as rig:
        stream = Stream(rig, 100_000)
        stream.svm(0, 100_000, 100)
        stream.pvm(0, abi.BOUNDS // 2 * 100, 100)
        assert rig.count("cmp-pvm", "pass", "verified") == abi.BOUNDS // 2
        assert stream.client_has() == abi.BOUNDS // 2 * 100


def test_the_newest_entry_is_always_there() -> None:
    """Wherever the SVM stops, the PVM's bytes up to there leave."""
    with Rig(slots=4096) as rig:
        stream = Stream(rig, 60_000)
        at = sent = 0
        for count in (65, 3, 70, 1, 131, 200, 2):
            stream.svm(sent, sent + count * 100, 100)
            sent += count * 100
            at, before = sent, at
            stream.pvm(before, at, 1000)
            assert stream.client_has() == sent
            assert stream.held() == 0


def test_more_wait_than_a_carrier_takes_at_once() -> None:
    """All leave, though neither VM goes on before the client has acknowledged something."""
    with Rig(slots=4096) as rig:
        stream = Stream(rig, 1400)
        stream.pvm(0, 1400, 1)
        assert stream.held() == 1400
        stream.svm(0, 1400, 1400)
        rig.await_empty_store()
        assert stream.client_has() == 1400


@pytest.mark.parametrize("size", [1, 3, 20])
def test_the_pvm_is_far_ahead_in_small_frames(size: int) -> None:
    """One segment of the SVM completes hundreds of them: all leave on its back."""
    total = 1400 // size * size
    with Rig(slots=4096) as rig:
        stream = Stream(rig, 3 * total)
        for number in range(3):
            start = number * total
            stream.pvm(start, start + min(total, 450 * size), size)
            held = stream.held()
            assert held == min(total // size, 450)
            stream.svm(start, start + held * size, held * size)
            assert stream.client_has() == start + held * size
            stream.svm(start + held * size, start + total, 1400)
            stream.pvm(start + held * size, start + total, 1400)
        assert stream.client_has() == 3 * total
        assert stream.held() == 0


@pytest.mark.parametrize("pvm", [300, 1400])
def test_where_both_stop_there_is_an_entry(pvm: int) -> None:
    """However far the SVM is ahead: a frame of the PVM that ends where one of the SVM's did passes,
    without waiting for the PVM's next."""
    with Rig(slots=4096) as rig:
        stream = Stream(rig, 140_000)
        stream.svm(0, 140_000, 100)
        for at in range(0, 138_600, pvm):
            stream.pvm(at, at + pvm, pvm)
            assert stream.client_has() == at + pvm
        assert rig.count("cmp-pvm", "pass", "verified") == 138_600 // pvm


def test_where_the_svm_of_another_epoch_stopped_is_no_entry() -> None:
    """I1: that SVM is gone, and the one of this epoch has said something else there."""
    with Rig(slots=4096) as rig:
        stream = Stream(rig, 2_000)
        stream.svm(0, 2_000, 10)
        rig.pair(epoch=2)
        rig.from_peer_raw(frames.of_vm(ISN + 1, bytes(1400), CLIENT_ISN + 1), 2)
        rig.from_vm_raw(stream._frame(0, 1000))
        stream.client_has()
        assert stream.received == b""


def test_where_the_svm_stopped_in_another_connection_is_no_entry() -> None:
    """I1: with the same bytes and numbers; but of this one the SVM has said something else."""
    with Rig(slots=4096) as rig:
        stream = Stream(rig, 2_000)
        stream.svm(0, 2_000, 10)
        other = 4712
        rig.from_client_raw(frames.of_client(CLIENT_ISN, flags=frames.SYN, port=other))
        for send in (rig.from_vm_raw, stream._to_link):
            syn_ack = frames.SYN | frames.ACK
            send(frames.of_vm(ISN, ack=CLIENT_ISN + 1, flags=syn_ack, port=other))
        rig.to_client_raw()
        stream._to_link(frames.of_vm(ISN + 1, bytes(1400), CLIENT_ISN + 1, port=other))
        rig.from_vm_raw(frames.of_vm(ISN + 1, stream.data[:1000], CLIENT_ISN + 1, port=other))
        assert all(not frames.parse(raw).payload for raw in rig.to_client_raw())
