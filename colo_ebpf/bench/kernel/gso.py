# SPDX-License-Identifier: GPL-2.0-only
"""Frames as large as 64 KB that the NIC is to cut: over real devices, for a test run makes none.

The VM writes them to its tap with a virtio header; the peer's come out of a tunnel device that
keeps them whole, as a secondary's does.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from colo_ebpf.bench.kernel import names
from colo_ebpf.bench.kernel.driver import CLIENT_ISN, ISN, Spent, spent_by
from colo_ebpf.bench.results import Recorder
from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.syscalls import run_time_kept
from colo_ebpf.datapath.net import netdev, vxlan
from colo_ebpf.errors import BenchError
from colo_ebpf.lab import frames
from colo_ebpf.lab.bed import LOCAL, PEER, PEER_END, PORT, VNET_HEADER, VNI, Bed, packet_socket

MSS = 1448
MAX_MTU = 65535
_TUNNEL = "vx1"
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_PATIENCE_S = 5.0


class GsoBed(Bed):
    """A bed whose peer is a tunnel device: it takes frames with a virtio header."""

    def _open_peer(self) -> socket.socket:
        netdev.add_address(PEER_END, PEER, 24)
        vxlan.create_to(_TUNNEL, VNI * abi.NICS, LOCAL, PORT, self._mtu)
        s = packet_socket(_TUNNEL, 0)
        s.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        return s

    def from_peer_raw(self, frame: bytes, tag: int, vni: int = VNI, nic: int = 0) -> None:
        """A frame arrives over the link."""
        if (vni, nic) != (VNI, 0):
            raise BenchError("this peer has one tunnel")
        self.from_peer_cut(VNET_HEADER + frame, tag)

    def from_vm_cut(self, frame: bytes) -> None:
        """The local VM leaves segmentation to its NIC; `frames.offloaded` made the frame."""
        os.write(self.taps[0], frame)

    def from_peer_cut(self, frame: bytes, tag: int) -> None:
        """The SVM did the same, in that epoch."""
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, tag)
        self.peer.send(frame)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it."""

    rounds: int
    frames: int  # in one reading
    segments: tuple[int, ...]  # in a frame


def paths(recorder: Recorder, part: str, scale: Scale, bed: GsoBed) -> None:
    """Cost of a frame of so many segments, whichever VM is first."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for cuts in scale.segments:
        for order in names.ORDERS:
            recorder.say(f"{part}: {cuts} segments of {MSS} B in a frame, {order}")
            for lane, values in _path(scale, cuts, order, bed).items():
                note = f"{cuts} segments of {MSS} B in one frame, over devices"
                recorder.add(part, names.COST, lane, "ns", values=values, note=note)


def _path(scale: Scale, cuts: int, order: str, bed: GsoBed) -> dict[str, list[float]]:
    size = cuts * MSS
    body = bytes(n * 37 % 251 for n in range(size))
    data = [
        frames.offloaded(ISN + 1 + n * size, body, CLIENT_ISN + 1, MSS) for n in range(scale.frames)
    ]
    lanes = _lanes(cuts, order)
    found: dict[str, list[float]] = {names.sized(lane, size): [] for lane in lanes}
    for _ in range(scale.rounds):
        _accept(bed)
        for values, spent in zip(found.values(), _exchange(bed, data, order, cuts), strict=False):
            values.append(spent.ns / len(data))
    return found


def _lanes(cuts: int, order: str) -> tuple[str, ...]:
    """What the PVM's frame costs, what the SVM's, and what the delay line."""
    if order == names.SVM_FIRST:
        return names.PASSES, names.NOTED
    if cuts < abi.PARK_CUTS:
        return names.HELD, names.CARRIES
    return names.PARKED, names.VERIFIES, names.ROUNDS


def _accept(bed: GsoBed) -> None:
    bed.empty()
    bed.pair()
    greeting = frames.of_vm(ISN, ack=CLIENT_ISN + 1, flags=frames.SYN | frames.ACK)
    bed.from_peer_raw(greeting, 1)
    bed.from_vm_raw(greeting)
    _until(lambda: bed.count("cmp-pvm", "pass", "verified") == 1, "the connection")


def _exchange(bed: GsoBed, data: list[bytes], order: str, cuts: int) -> tuple[Spent, Spent, Spent]:
    """Run time while the PVM's frames were handled, while the SVM's were, and of `colo_park`."""
    programs = bed.plane.programs
    fds = [programs[name] for name in ("colo_cmp_pvm", "colo_cmp_svm", "colo_last_out")]
    senders: dict[str, Callable[[bytes], None]] = {
        "pvm": bed.from_vm_cut,
        "svm": partial(bed.from_peer_cut, tag=1),
    }
    turns = ("svm", "pvm") if order == names.SVM_FIRST else ("pvm", "svm")
    spent = {vm: Spent(0, 0) for vm in turns}

    def all_of_them() -> None:
        for frame in data:
            for vm in turns:
                spent[vm] += spent_by(fds, partial(senders[vm], frame))
        _check(bed, order, cuts, len(data))

    with run_time_kept():
        line = spent_by([programs["colo_park"]], all_of_them)
    return spent["pvm"], spent["svm"], line


def _check(bed: GsoBed, order: str, cuts: int, sent: int) -> None:
    if order == names.SVM_FIRST:
        row, wanted = ("cmp-pvm", "pass", "verified"), sent + 1
    elif cuts < abi.PARK_CUTS:
        row, wanted = ("drain", "carry", "whole"), sent
    else:
        row, wanted = ("park", "pass", "verified"), sent
    _until(lambda: bed.count(*row) == wanted, f"{wanted} frames by {' '.join(row)}")


def _until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise BenchError(f"large frames: not seen: {what}")
        time.sleep(0.001)
