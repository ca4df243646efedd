# SPDX-License-Identifier: GPL-2.0-only
"""Two VMs that nobody protects, under the same load at the same time.

No pair can have more: two VMs and what they are asked share this machine's processors. What one
of them gives is reported.

`replicated`: what the first VM writes also goes to a disk at the second host, through the second
VM's QEMU, and a write or flush waits for both disks. A pair has to do that, too.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from colo_ebpf.bench.apps import guest as guests
from colo_ebpf.bench.apps import readings
from colo_ebpf.bench.apps.clients import Where
from colo_ebpf.bench.apps.lane import Measured
from colo_ebpf.bench.apps.loads import Load
from colo_ebpf.bench.apps.replica import Replica
from colo_ebpf.datapath.net import bridges, namespaces, tuntap
from colo_ebpf.lab import mounts, network, processes, topology
from colo_ebpf.lab.topology import (
    BRIDGE,
    CLIENT_ADDRESS,
    GUEST_MTU,
    HOSTS,
    PREFIX_LENGTH,
    TAP,
    Guest,
    Place,
    client_namespace,
)

_MAC = "52:54:00:77:01:{:02x}"
_SETTLES_S = 1.0


class TwinsLane:
    """A plain QEMU on each host of a lab without daemons; or on some hosts."""

    def __init__(
        self, name: str, guest: Guest, hosts: Sequence[str] = HOSTS, replicated: bool = False
    ) -> None:
        self._name, self._guest = name, guest
        self._places = [Place(name, host) for host in hosts]
        self._replica = Replica(self._places[1], guest.disk) if replicated else None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Both have booted."""
        await asyncio.to_thread(self._remove)
        try:
            await asyncio.to_thread(self._build)
            for place in reversed(self._places):
                await self._start(place)
                if self._replica is not None and place is self._replica.place:
                    await self._replica.lend()
            for place in self._places:
                await guests.until_serving(place.run_dir)
            await asyncio.sleep(_SETTLES_S)
            yield
        finally:
            await asyncio.to_thread(self._remove)

    async def measure(self, load: Load, seconds: float) -> Measured:
        """Each has a client of its own; the mean of both."""
        found = await asyncio.gather(*(load.run(where, seconds) for where in self.wheres))
        return Measured(readings.mean(found))

    @property
    def wheres(self) -> list[Where]:
        """The guests."""
        client = client_namespace(self._name)
        return [Where(client, self._address(place)) for place in self._places]

    def _address(self, place: Place) -> str:
        network_, _, last = self._guest.address.rpartition(".")
        return f"{network_}.{int(last) + place.number}"

    def _build(self) -> None:
        mounts.mount_memory(topology.directory(self._name))
        network.build(self._name)
        for place in self._places:
            place.run_dir.mkdir(parents=True)
            shutil.copyfile(self._guest.disk, place.disk)
            namespaces.run_in(place.namespace, _tap_on_the_bridge)
        if self._replica is not None:
            self._replica.make()

    def _remove(self) -> None:
        for place in self._places:
            processes.end(place.namespace)
        processes.end(client_namespace(self._name))
        network.remove(self._name)
        mounts.remove(topology.directory(self._name), topology.ROOT.parent)

    async def _start(self, place: Place) -> None:
        with (place.run_dir / "qemu.log").open("wb") as log:
            await asyncio.create_subprocess_exec(
                *("nsenter", f"--net=/run/netns/{place.namespace}", *self._command_line(place)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(os.environ),
            )

    def _command_line(self, place: Place) -> list[str]:
        guest = self._guest
        address = f"{self._address(place)}/{PREFIX_LENGTH}"
        return [
            *(guests.QEMU, "-name", f"{self._name}-{place.host}"),
            *("-machine", f"pc,accel={guest.accel}"),
            *("-cpu", "host" if guest.accel == "kvm" else "max", "-smp", "1"),
            *("-m", str(guest.memory_mib), "-nodefaults", "-display", "none"),
            *("-serial", f"file:{place.run_dir / 'serial.log'}"),
            *("-kernel", guest.kernel, "-initrd", guest.initrd),
            *("-append", f"{guest.append} colo.ip={address} colo.gw={CLIENT_ADDRESS}"),
            *("-netdev", f"tap,id=net0,ifname={TAP},vhost=off,script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net0,mac={_MAC.format(place.number)},romfile="),
            *self._drive(place),
            *("-device", "virtio-blk-pci,drive=disk0"),
        ]

    def _drive(self, place: Place) -> list[str]:
        own = f"file.driver=file,file.filename={place.disk}"
        if self._replica is None:
            return ["-drive", f"if=none,id=disk0,driver=raw,{own}"]
        if place is self._replica.place:
            return [*self._replica.drive(), "-drive", f"if=none,id=disk0,driver=raw,{own}"]
        child = f"children.0.driver=raw,children.0.{own.replace(',', ',children.0.')}"
        quorum = f"driver=quorum,read-pattern=fifo,vote-threshold=1,{child}"
        return ["-drive", f"if=none,id=disk0,{quorum},{self._replica.child(1)}"]


def _tap_on_the_bridge() -> None:
    tuntap.create_tap(TAP, GUEST_MTU)
    bridges.join(TAP, BRIDGE)
