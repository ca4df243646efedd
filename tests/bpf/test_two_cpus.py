# SPDX-License-Identifier: GPL-2.0-only
"""Both VMs' frames of one connection at the same time, each on a CPU of its own.

A process writes what the PVM sends while this one sends the SVM's: two locks, two lists and two
hashes are changed by both. What a CPU finds busy for too long is dropped and sent again, as TCP
would. In the end the client has every byte once, and nothing is left behind.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.abi import Prog
from colo_ebpf.lab import frames
from tests.bpf.rig import Rig
from tests.capabilities import require

ISN, CLIENT_ISN, BYTES = 1000, 5000, 2_000_000
_ROUNDS = 60
_BURST = 2000  # segments: what the client's socket holds is read in between


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")


@contextmanager
def _beside(rig: Rig, work: Callable[[], None]) -> Iterator[None]:
    """`work` in a process of its own, on the last CPU, while the body runs on the rig's."""
    ready, say = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.sched_setaffinity(0, {max(rig._cpus)})
            os.write(say, b"!")
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    try:
        os.read(ready, 1)
        yield
    finally:
        os.close(ready)
        os.close(say)
        assert os.waitpid(pid, 0)[1] == 0, "the other VM's process failed"


# The link is slower than a tap: cut like this, either VM is ahead for about as long.
PVM_CUTS, SVM_CUTS = (1, 7, 100, 300, 536), (700, 1000, 1448)


def _segments(
    rng: random.Random, data: bytes, start: int, cuts: tuple[int, ...]
) -> list[tuple[int, bytes]]:
    """The stream from `start` on, cut at random."""
    cut = []
    while start < len(data) and len(cut) < _BURST:
        part = data[start : start + rng.choice(cuts)]
        cut.append((start, part))
        start += len(part)
    return cut


class _Client:
    """What has arrived."""

    def __init__(self, rig: Rig, sent: bytes) -> None:
        self._rig, self._sent = rig, sent
        self.received: dict[int, int] = {}
        self.copies = 0

    @property
    def in_order(self) -> int:
        """How far the stream is whole."""
        return next(n for n in range(len(self.received) + 1) if n not in self.received)

    def read(self) -> None:
        """Everything that is there now; each byte has to be the VM's."""
        for frame in self._rig.to_client_raw():
            segment = frames.parse(frame)
            if segment is None or segment.flags & frames.SYN:
                continue
            assert segment.sums_right
            start = (segment.seq - ISN - 1) % 2**32
            assert segment.payload == self._sent[start : start + len(segment.payload)]
            for at in range(start, start + len(segment.payload)):
                self.copies += at in self.received
                self.received[at] = 1


def _connect(rig: Rig) -> None:
    rig.pair()
    rig.from_client_raw(frames.of_client(CLIENT_ISN, flags=frames.SYN))
    for isn, send in ((ISN, rig.from_vm_raw), (ISN + 7, lambda f: rig.from_peer_raw(f, 1))):
        send(frames.of_vm(isn, ack=CLIENT_ISN + 1, flags=frames.SYN | frames.ACK))
    rig.to_client_raw()


def _ran_on(rig: Rig, program: Prog) -> set[int]:
    """The CPUs that have counted a frame of the program."""
    cpus = os.sysconf("SC_NPROCESSORS_CONF")
    per_program = len(abi.Verdict) * abi.REASONS
    raw = rig.plane._stats.all()
    size = 16 * cpus
    found = set()
    for row in range(program * per_program, (program + 1) * per_program):
        counts = struct.unpack_from(f"={2 * cpus}Q", raw, row * size)
        found |= {cpu for cpu in range(cpus) if counts[2 * cpu]}
    return found


@pytest.mark.parametrize("seed", range(3))
def test_one_connection(seed: int) -> None:
    rng = random.Random(seed)
    data = rng.randbytes(BYTES)
    with Rig(slots=4096) as rig:
        _connect(rig)
        client = _Client(rig, data)
        for number in range(_ROUNDS):
            start = client.in_order
            if start == BYTES:
                break
            back = max(0, start - 3000 * (number % 2))
            mine = _segments(rng, data, back, SVM_CUTS)
            other = _segments(rng, data, start, PVM_CUTS)
            ack = CLIENT_ISN + 1 + number

            def pvm(segments: list[tuple[int, bytes]] = other, ack: int = ack) -> None:
                for at, part in segments:
                    rig.from_vm_raw(frames.of_vm(ISN + 1 + at, part, ack))

            with _beside(rig, pvm):
                for count, (at, part) in enumerate(mine):
                    rig.from_peer_raw(frames.of_vm(ISN + 1 + at, part, ack), 1)
                    if count % 100 == 0:
                        rig.plane.flush()
            client.read()
        assert client.in_order == BYTES, f"{client.in_order} bytes of {BYTES} in {_ROUNDS} rounds"
        _nothing_left(rig)
        assert _ran_on(rig, Prog.CMP_PVM) - _ran_on(rig, Prog.CMP_SVM), "that was one CPU"


def _nothing_left(rig: Rig) -> None:
    rig.plane.flush()
    flow = rig.flow()
    assert (flow.lock, flow.emitter, flow.held, flow.head) == (0, 0, 0, 0)
    assert flow.verified == ISN + 1 + BYTES
    assert rig.plane.held().frames == 0
    assert rig.plane.live()["held"] == 0
    assert "mismatch" not in rig.events()


def test_datagrams() -> None:
    """Each leaves once, whichever VM's comes first; only one that found its bucket busy is lost."""
    count = 3000
    with Rig(slots=4096) as rig:
        rig.pair()
        order = list(range(count))
        random.Random(7).shuffle(order)

        def pvm() -> None:
            for number in range(count):
                rig.from_vm_raw(frames.datagram(number))

        with _beside(rig, pvm):
            for number in sorted(order, key=lambda n: n // 16):  # 16 at a time in another order
                rig.from_peer_raw(frames.datagram(number), 1)
        out = [n for n in map(frames.datagram_number, rig.to_client_raw()) if n is not None]
        assert len(set(out)) == len(out), "one left twice"
        busy = rig.count("cmp-pvm", "drop", "busy") + rig.count("cmp-svm", "drop", "busy")
        forgotten = rig.plane.held().frames  # their bucket had to forget the SVM's note
        assert len(out) >= count - busy - forgotten
        rig.plane.set_turn(2, 0)
        rig.plane.flush()
        late = [n for n in map(frames.datagram_number, rig.to_client_raw()) if n is not None]
        assert len(set(out) | set(late)) == len(out) + len(late)
        assert len(out) + len(late) >= count - rig.count("cmp-pvm", "drop", "busy")
