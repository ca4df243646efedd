# SPDX-License-Identifier: GPL-2.0-only
"""Two hosts with the shipped data planes and a real link; the test is both VMs and the clients.

Each host has two NICs of the VM. What a client sends goes to one host's bridges, as a switch
would decide; what any host lets out is read in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from colo_ebpf.datapath.bpf.loader import Sizes, frame_bytes, pin_directory
from colo_ebpf.datapath.bpf.syscalls import RawMap
from colo_ebpf.datapath.net import bridges, namespaces
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.datapath.spec import PlaneNic, PlaneSpec
from colo_ebpf.lab.bed import (
    CACHE,
    IPV4,
    VNET_HEADER,
    Ends,
    empty_maps,
    open_tap,
    packet_socket,
    take_address,
    without_ipv6,
)
from colo_ebpf.lab.frames import CLIENT_MAC
from colo_ebpf.model import Mode, Pairing, VmRole
from tests.netns import enter, readable

MTU, NICS = 1500, 2
_MARK_TYPE = b"\x88\xb6"
_BACKLOGS = 5  # client side, link, tunnel, tap, client side: a frame waits in as many
_WAIT_S = 5.0
_FRAME_BYTES = 65600


class Host:
    """One of the two; made by `TwoHosts`."""

    def __init__(self, stack: contextlib.ExitStack, tag: str, number: int, ends: Ends) -> None:
        self.number, self.namespace = number, f"{tag}{'ab'[number]}"
        self.address = (ends.local, ends.peer)[number]
        self.prefix_length = ends.prefix_length
        self._stack, self._pins = stack, Path()
        self._opened: dict[Path, RawMap] = {}
        self.taps: list[int] = []
        self.clients: list[socket.socket] = []  # one for each NIC, behind its bridge
        self.marks: list[socket.socket] = []

    def build(self, clients: str) -> None:
        """Devices, programs and sockets, from inside the namespace."""
        self.take_address(self.address)
        for nic in range(NICS):
            bridges.create(f"br{nic}")
            bridges.join(f"up{nic}", f"br{nic}")
        bpffs = Path(tempfile.mkdtemp(prefix=f"colo-test-bpf-{os.getpid()}-"))
        subprocess.run(["mount", "-t", "bpf", "bpf", str(bpffs)], check=True)
        self._stack.callback(bpffs.rmdir)
        self._stack.callback(subprocess.run, ["umount", str(bpffs)], check=True)
        self.plane = DataPlane.open(
            PlaneSpec(
                vm="t",
                bpffs=bpffs,
                cache=CACHE,
                nics=tuple(PlaneNic(f"tap{n}", f"br{n}", MTU) for n in range(NICS)),
                link_device="vx0",
                underlay="link0",
                vxlan_port=4789,
                link_address=self.address,
                link_timeout_ms=60_000,
                notes_last_ms=60_000,
                heartbeat_ms=30,
                sizes=Sizes(256, 1024, 64, frame_bytes(MTU)),
            )
        )
        self._stack.callback(self.plane.close)
        self._pins = pin_directory(bpffs, "t")
        asyncio.run(self._attach(VmRole.PRIMARY))
        for nic in range(NICS):
            self.taps.append(open_tap(f"tap{nic}"))
            self._stack.callback(os.close, self.taps[-1])
            self.marks.append(packet_socket(f"up{nic}", 0))
            self._stack.callback(self.marks[-1].close)
        for nic in range(NICS):
            name = f"c{self.number}{nic}"
            self.clients.append(namespaces.run_in(clients, lambda n=name: packet_socket(n)))
            self._stack.callback(self.clients[-1].close)

    def take_address(self, address: str) -> None:
        """On the link; from inside the namespace."""
        take_address("link0", address, self.prefix_length)

    async def _attach(self, role: VmRole) -> None:
        await self.plane.prepare()
        await self.plane.take_role(role)
        await self.plane.join_bridge()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, in the host's namespace: where programs are run and devices found."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        enter(os.open(f"/var/run/netns/{self.namespace}", os.O_RDONLY))
        try:
            yield
        finally:
            enter(home)

    def take_role(self, role: VmRole) -> None:
        """Attach this side's programs."""
        namespaces.run_in(self.namespace, lambda: asyncio.run(self.plane.take_role(role)))

    def fold_offsets(self) -> list[bytes]:
        """What the last takeover left becomes lasting."""
        return namespaces.run_in(self.namespace, lambda: asyncio.run(self.plane.fold_offsets()))

    def forget(self) -> None:
        """A fresh VM is about to start."""
        asyncio.run(self.plane.forget())

    def beacon(self) -> None:
        """Let the other plane hear this one."""
        with self.inside():
            self.plane.beacon()

    def flush(self) -> None:
        """Emit what may leave."""
        with self.inside():
            self.plane.flush()

    def repeat(self) -> None:
        """After a takeover: what the VM said last leaves again."""
        with self.inside():
            self.plane.repeat()

    def empty(self) -> None:
        """As after loading."""
        self.plane.set_mode(Mode.WITHHOLD)
        self.plane.set_pairing(None)
        self.forget()
        empty_maps(self._pins, self._opened)

    def vm_sends(self, nic: int, frame: bytes) -> None:
        """The VM of this host."""
        os.write(self.taps[nic], VNET_HEADER + frame)

    def vm_gets(self, nic: int) -> list[bytes]:
        """What has reached the VM by now; `TwoHosts.settle` first."""
        out = []
        while readable(self.taps[nic]):
            frame = os.read(self.taps[nic], _FRAME_BYTES)[len(VNET_HEADER) :]
            if frame[12:14] != _MARK_TYPE:
                out.append(frame)
        return out


class TwoHosts:
    """`with TwoHosts() as hosts`: nobody paired, all maps empty."""

    _made: ClassVar[dict[Ends, TwoHosts]] = {}

    def __new__(cls, ends: Ends = IPV4) -> TwoHosts:
        """Compiling takes seconds: there is one pair of each kind, emptied for each use."""
        if ends not in cls._made:
            cls._made[ends] = super().__new__(cls)
            cls._made[ends]._build(ends)
        return cls._made[ends]

    @classmethod
    def close(cls) -> None:
        """Remove everything."""
        while cls._made:
            cls._made.popitem()[1]._stack.close()

    def _build(self, ends: Ends) -> None:
        self._stack = contextlib.ExitStack()
        tag = f"colot{os.getpid()}p{len(self._made)}"
        clients = f"{tag}c"
        self.hosts = [Host(self._stack, tag, number, ends) for number in range(2)]
        for name in (clients, *(host.namespace for host in self.hosts)):
            namespaces.create(name)
            self._stack.callback(namespaces.remove, name)
            namespaces.run_in(name, without_ipv6)
        names = [host.namespace for host in self.hosts]
        namespaces.create_veth("link0", "link0", *names, MTU + 100)
        for host in self.hosts:
            for nic in range(NICS):
                ends = (f"up{nic}", f"c{host.number}{nic}")
                namespaces.create_veth(*ends, host.namespace, clients, MTU)
            namespaces.run_in(host.namespace, lambda h=host: h.build(clients))

    def __enter__(self) -> TwoHosts:
        self._cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(self._cpus)})  # one queue: what comes later is behind
        for host in self.hosts:
            host.empty()
        self.settle()
        for host in self.hosts:
            for nic in range(NICS):
                host.vm_gets(nic)
        return self

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._cpus)

    def pair(self, primary: Host, secondary: Host, vni: int) -> None:
        """The link of a new pairing, both ways."""
        for host, other in ((primary, secondary), (secondary, primary)):
            host.plane.set_pairing(Pairing(vni, other.address))

    def settle(self) -> list[tuple[int, bytes]]:
        """Wait until what was sent is where it goes; returns what left, with its NIC."""
        out: list[tuple[int, bytes]] = []
        for _ in range(_BACKLOGS):
            for host in self.hosts:
                for nic in range(NICS):
                    out += self._up_to_mark(host, nic)
        return out

    def _up_to_mark(self, host: Host, nic: int) -> list[tuple[int, bytes]]:
        target = bytes.fromhex(CLIENT_MAC.replace(":", ""))
        mark = target + b"\x02\0\0\0\0\x99" + _MARK_TYPE + os.urandom(46)
        host.marks[nic].send(mark)
        client, out = host.clients[nic], []
        while True:
            assert readable(client, _WAIT_S), "the mark did not arrive"
            frame = client.recv(_FRAME_BYTES)
            if frame == mark:
                return out
            if frame[12:14] != _MARK_TYPE:
                out.append((nic, frame))
