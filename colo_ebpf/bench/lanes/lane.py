# SPDX-License-Identifier: GPL-2.0-only
"""A lane: a client and a server, and what is between them. Here the one without protection."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from colo_ebpf.bench import names
from colo_ebpf.bench.lanes import workload
from colo_ebpf.bench.lanes.wires import CLIENT, ETH, Wires, guest_cpus
from colo_ebpf.bench.lanes.workload import REQUEST, Outcome
from colo_ebpf.datapath.net import bridges, namespaces
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.topology import BRIDGE, GUEST_MTU, TAP

HOST, PVM, SVM = "host", "pvm", "svm"
_START_S = 45.0


class Lane:
    """Built once, used in turn with the others; one that is idle costs nothing."""

    name = ""
    guests: tuple[str, ...] = (PVM, SVM)

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.wires = Wires(self.name, directory)

    def open(self) -> None:
        """Build it, and see that it answers. Raises BenchError."""
        try:
            self.build()
            self._await()
        except BaseException:
            self.close()
            raise

    def build(self) -> None:
        """All of it but the wait for the first answer."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove it."""
        self.wires.close()

    def renew(self) -> None:
        """A load left it in a state that would spoil the next: begin afresh."""
        self.close()
        self.wires = Wires(self.name, self._directory)
        self.open()

    def wake(self) -> None:
        """A load is about to begin."""

    def rest(self) -> None:
        """It is over."""

    def requests(self) -> Counter[str]:
        """Checkpoints asked for since the lane was built, by cause."""
        return Counter()

    def set_timestamps(self, client: int, pvm: int, svm: int) -> None:
        """`tcp_timestamps`: 0 without, 1 with, 2 with another offset than 1."""
        values = {CLIENT: client, PVM: pvm, SVM: svm}
        for what in (CLIENT, *self.guests):
            self.wires.set(what, "net/ipv4/tcp_timestamps", str(values[what]))

    def run(self, argv: list[str], seconds: float) -> Outcome:
        """One run of the program `load`, by the lane's client."""
        program = self._directory / "load"
        return workload.run(program, self.wires.name(CLIENT), argv, seconds)

    def packets(self) -> int:
        """That the client has sent and received so far."""

        def read() -> int:
            for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
                device, _, counts = line.partition(":")
                if device.strip() == ETH:
                    fields = counts.split()
                    return int(fields[1]) + int(fields[9])
            raise BenchError(f"{self.wires.name(CLIENT)}: no {ETH}")

        return self.wires.inside(CLIENT, read)

    def _await(self) -> None:
        """Until one request is answered."""
        deadline = time.monotonic() + _START_S
        self.wake()
        while not self.run(REQUEST.argv(0.05), 0.05).whole:
            if time.monotonic() > deadline:
                raise BenchError(f"lane {self.name}: no answer within {_START_S:.0f} s")
        self.rest()


class PlainLane(Lane):
    """Client, bridge, server."""

    name = names.PLAIN
    guests = (PVM,)
    cpu = 0  # of `guest_cpus`

    def build(self) -> None:
        wires = self.wires
        for what in (HOST, PVM):
            wires.add(what)
        wires.add_client(HOST)
        namespaces.create_veth(TAP, ETH, wires.name(HOST), wires.name(PVM), GUEST_MTU)
        wires.inside(HOST, lambda: bridges.join(TAP, BRIDGE))
        cpu = guest_cpus()[self.cpu]
        wires.finish_guest(PVM, cpu)
        wires.serve(PVM, cpu)


class SecondPlainLane(PlainLane):
    """Beside the plain one: what two servers cost without protection."""

    name = names.TWO
    cpu = 1
