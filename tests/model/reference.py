# SPDX-License-Identifier: GPL-2.0-only
"""What may leave, said as simply as it can be: byte by byte, no hashes, no windows, no wrap.

Positions are 0-based in the VM's stream. The model is told everything both VMs send and every
proven turn; it answers, of anything a client receives, whether it was allowed to leave. Once
allowed is always allowed: what was verified in an epoch is in the next checkpoint.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Reference:
    """One connection."""

    produced: bytearray = field(default_factory=bytearray)  # all that the PVM ever sent
    epoch: int = 1
    in_checkpoint: int = 0  # positions below are in the state the SVM has loaded
    svm: dict[int, int] = field(default_factory=dict)  # position: byte, sent by it this epoch
    allowed: set[int] = field(default_factory=set)
    datagrams: Counter[int] = field(default_factory=Counter)  # that may have left by now
    p_datagrams: Counter[int] = field(default_factory=Counter)  # of this epoch
    s_datagrams: Counter[int] = field(default_factory=Counter)
    p_ack: int = 0  # the highest ACK the PVM produced
    floor: int = 0
    solo: bool = False

    def pvm_sends(self, start: int, data: bytes, ack: int) -> None:
        """The PVM produced a segment."""
        end = start + len(data)
        if end > len(self.produced):
            self.produced += data[len(self.produced) - end :]
        self.p_ack = max(self.p_ack, ack)
        self._compare(range(start, end))

    def svm_sends(self, start: int, data: bytes, ack: int, epoch: int) -> None:
        """The SVM produced a segment in `epoch`."""
        if epoch != self.epoch:
            return
        self.floor = max(self.floor, ack)
        for position, byte in enumerate(data, start):
            self.svm[position] = byte
        self._compare(range(start, start + len(data)))

    def pvm_sends_datagram(self, number: int) -> None:
        """The PVM produced a datagram."""
        self.p_datagrams[number] += 1

    def svm_sends_datagram(self, number: int, epoch: int) -> None:
        """The SVM produced a datagram in `epoch`."""
        if epoch == self.epoch:
            self.s_datagrams[number] += 1

    def datagram_complaint(self, number: int, times: int) -> str:
        """Why the client should not have received it as often ("" if it may)."""
        both = min(self.p_datagrams[number], self.s_datagrams[number])
        most = self.datagrams[number] + (self.p_datagrams[number] if self.solo else both)
        return "" if times <= most else f"datagram {number} left {times} times, {most} may"

    def _compare(self, positions: range) -> None:
        for position in positions:
            if position < len(self.produced) and self.svm.get(position) == self.produced[position]:
                self.allowed.add(position)

    def turned(self) -> None:
        """A turn is proven and its checkpoint loaded: the SVM is what the PVM was."""
        self.epoch += 1
        self.in_checkpoint = len(self.produced)
        self.datagrams += self.p_datagrams
        self.p_datagrams.clear()
        self.s_datagrams.clear()
        self.svm.clear()
        self.floor = max(self.floor, self.p_ack) if self.solo else self.p_ack

    def goes_solo(self) -> None:
        """Everything may leave."""
        self.solo = True

    def complaint(self, start: int, data: bytes, ack: int) -> str:
        """Why this should not have reached the client ("" if it may)."""
        for position, byte in enumerate(data, start):
            if position >= len(self.produced) or self.produced[position] != byte:
                return f"byte {position} is none the PVM produced"
            free = self.solo or position < self.in_checkpoint or position in self.allowed
            if not free:
                return f"byte {position} was neither verified nor in a checkpoint"
        if not self.solo and ack > max(self.floor, 0):
            return f"ACK {ack} is beyond the floor {self.floor}"
        return ""
