# SPDX-License-Identifier: GPL-2.0-only
"""Two real QEMUs as a pair, without a data plane: taps in a namespace, loopback between them."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from colo_ebpf.control.cmdline import VmSpec
from colo_ebpf.control.machine import QemuMachine
from colo_ebpf.control.vm import Qemu
from colo_ebpf.datapath import netdev
from colo_ebpf.model import VmEvent, VmEventKind, VmRole
from tests.capabilities import GUEST
from tests.netns import enter

DISK_BYTES = 16 << 20


@dataclass
class Side:
    """One QEMU and the events it sent."""

    vm: Qemu
    spec: VmSpec
    events: list[VmEvent] = field(default_factory=list)

    def kinds(self) -> list[VmEventKind]:
        """Kinds of the events so far."""
        return [event.kind for event in self.events]


def spec_of(host: str, directory: Path, disk_bytes: int = DISK_BYTES) -> VmSpec:
    """A 128 MiB guest under TCG; a and b differ in address and tap."""
    run = directory / host
    run.mkdir(parents=True, exist_ok=True)
    disk = run / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(disk_bytes)
    return VmSpec(
        name="t",
        host=host,
        qemu="qemu-system-x86_64",
        kernel=str(GUEST / "vmlinuz"),
        initrd=str(GUEST / "initramfs.gz"),
        append="console=ttyS0 quiet mitigations=off random.trust_cpu=on",
        memory_mib=128,
        cpus=1,
        accel="tcg",
        machine="pc",
        preload=str(GUEST / "libtcgdirty.so"),
        nics=((f"tap{host}", "52:54:00:12:34:56"),),
        disk=disk,
        disk_format="raw",
        overlay_dir=run / "overlay",
        run_dir=run,
        link_address="127.0.0.1" if host == "a" else "127.0.0.2",
        nbd_port=10809,
        migration_port=4444,
        qmp_timeout_ms=10_000,
        start_timeout_ms=60_000,
        sync_timeout_ms=60_000,
        checkpoint_timeout_ms=20_000,
    )


class Pair:
    """`async with Pair(tmp_path) as (a, b)`: both run under COLO."""

    def __init__(self, directory: Path, disk_bytes: Mapping[str, int] | None = None) -> None:
        self._directory = directory
        self._disk_bytes = disk_bytes or {}
        self._namespace = f"colotq{os.getpid()}"
        self.sides: list[Side] = []

    async def __aenter__(self) -> tuple[Side, Side]:
        netdev.create_namespace(self._namespace)
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        enter(os.open(f"/var/run/netns/{self._namespace}", os.O_RDONLY))
        for host in "ab":
            await asyncio.to_thread(netdev.create_tap, f"tap{host}", 1500)
        try:
            return await self._pair()
        except BaseException:
            await self.__aexit__()
            raise

    async def _pair(self) -> tuple[Side, Side]:
        a = await self.start("a", VmRole.PRIMARY)
        await a.vm.cont()
        b = await self.start("b", VmRole.SECONDARY)
        to = await b.vm.listen()
        await a.vm.synchronise(to, lambda progress: None)
        await a.vm.enter_colo(to, lambda progress: None)
        return a, b

    async def start(self, host: str, role: VmRole) -> Side:
        """Start one side's QEMU."""
        spec = spec_of(host, self._directory, self._disk_bytes.get(host, DISK_BYTES))
        vm = await QemuMachine(spec).start(role, f"{host}/{secrets.token_hex(8)}")
        side = Side(vm, spec)
        vm.subscribe(side.events.append)
        self.sides.append(side)
        return side

    async def __aexit__(self, *_: object) -> None:
        for side in self.sides:
            await side.vm.kill()
        enter(self._home)
        netdev.remove_namespace(self._namespace)
