# SPDX-License-Identifier: GPL-2.0-only
"""Two real QEMUs as a pair, without a data plane: taps in a namespace, loopback between them."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakSet

import pytest

from colo_ebpf.control.qemu import cmdline, error_log
from colo_ebpf.control.qemu.cmdline import DiskSpec, NicSpec, VmSpec
from colo_ebpf.control.qemu.process import QemuMachine
from colo_ebpf.control.qemu.vm import Qemu
from colo_ebpf.datapath.net import namespaces, tuntap
from colo_ebpf.lab.guest import APPEND
from colo_ebpf.model import Progress, VmEvent, VmEventKind, VmRole
from tests.capabilities import GUEST
from tests.netns import enter

DISK_BYTES = 16 << 20
GUEST_ADDRESS, LEDGER, LIFE = "192.168.77.10", 7001, 7003
TEXT = b"x" * 400
_CLIENT_ADDRESS, _CLIENT_MAC = "192.168.77.1/24", "02:00:00:77:00:01"
_KINDS = 20  # of events that are told of a failure
_BATCH = 8  # what the guest's service takes at once


@dataclass
class Side:
    """One QEMU and the events it sent."""

    vm: Qemu
    spec: VmSpec
    events: list[VmEvent] = field(default_factory=list)

    def kinds(self) -> list[VmEventKind]:
        """Kinds of the events so far."""
        return [event.kind for event in self.events]


def spec_of(
    host: str,
    directory: Path,
    disk_bytes: int = DISK_BYTES,
    disk_count: int = 1,
    *,
    sector_bytes: int = 512,
    memory_mib: int = 128,
) -> VmSpec:
    """A guest under TCG; a and b differ in address and tap."""
    run = directory / host
    run.mkdir(parents=True, exist_ok=True)
    disks = tuple(
        DiskSpec(n, run / f"disk{n}.raw", "raw", run / "overlay", sector_bytes=sector_bytes)
        for n in range(disk_count)
    )
    for disk in disks:
        if not disk.path.exists():
            with disk.path.open("wb") as file:
                file.truncate(disk_bytes)
    return VmSpec(
        name="t",
        host=host,
        qemu="qemu-system-x86_64",
        kernel=str(GUEST / "vmlinuz"),
        initrd=str(GUEST / "initramfs.gz"),
        append=f"{APPEND} colo.disk=vd{chr(ord('a') + disk_count - 1)}",
        memory_mib=memory_mib,
        cpus=1,
        accel="tcg",
        machine="pc",
        preload=str(GUEST / "libtcgdirty.so"),
        nics=(NicSpec(f"tap{host}", "52:54:00:12:34:56"),),
        disks=disks,
        run_dir=run,
        link_address="127.0.0.1" if host == "a" else "127.0.0.2",
        peer_address="",
        nbd_port=10809,
        migration_port=4444,
        qmp_timeout_ms=10_000,
        hang_timeout_ms=1000,
        reconnect_s=1,
        start_timeout_ms=60_000,
        sync_timeout_ms=60_000,
        checkpoint_timeout_ms=20_000,
    )


async def until(condition: Callable[[], bool], what: str) -> None:
    """Until it is true; fails the test after 30 s."""
    try:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"never: {what}")


async def checkpoint(a: Side, b: Side, *, beside: VmEventKind | None = None) -> None:
    """Take one, and see that it went the usual way; but for events of this kind, too."""
    loads, told, at = b.vm.loads(), a.vm.peer_loads(), len(a.events)
    await a.vm.trigger_checkpoint()
    await until(lambda: VmEventKind.RESUME in a.kinds()[at:], "RESUME on the primary")
    assert a.vm.peer_loads() == told + 1, "it is written down before RESUME"
    await until(lambda: b.vm.loads() == loads + 1, "the secondary's load")
    kinds = [k for k in a.kinds()[at:] if k not in (VmEventKind.MIGRATION, beside)]
    ways = ([], [VmEventKind.MIGRATION_PASS])  # QEMU 11 sends none
    assert kinds in [[VmEventKind.STOP, *way, VmEventKind.RESUME] for way in ways]


async def take_over(a: Side, b: Side) -> None:
    """The primary's QEMU dies, and the secondary goes on."""
    os.kill(a.vm.pid, signal.SIGKILL)
    await until(lambda: VmEventKind.COLO_EXIT in b.kinds(), "COLO_EXIT")
    await b.vm.take_over()


async def committed(b: Side) -> None:
    """After a takeover, until its images are whole; fails the test after 30 s."""
    async with asyncio.timeout(30):
        while not await b.vm.overlays_committed():
            await asyncio.sleep(0.05)


class Ledger:
    """Writes to the disks of a side's guest through its ledger (guest/services.c)."""

    def __init__(self) -> None:
        self.count = 0

    def append(self, count: int) -> None:
        """So many entries, each on the disk when this returns; of a block each."""
        with socket.create_connection((GUEST_ADDRESS, LEDGER), timeout=60) as s:
            answers = s.makefile("rb")
            for first in range(self.count + 1, self.count + count + 1, _BATCH):
                numbers = range(first, min(first + _BATCH, self.count + count + 1))
                s.sendall(b"".join(b"ADD %d %s\n" % (n, TEXT) for n in numbers))
                for n in numbers:
                    answer = answers.readline()
                    assert answer.startswith(b"OK %d " % n), answer
        self.count += count


class Pair:
    """`async with Pair(tmp_path) as (a, b)`: both run under COLO."""

    def __init__(
        self,
        directory: Path,
        *,
        disk_bytes: Mapping[str, int] | None = None,
        disk_count: Mapping[str, int] | int = 1,
        fill: bytes = b"",
        sector_bytes: int = 512,
        secondary: str = "127.0.0.2",
        memory_mib: int = 128,
        queues: int = 1,
        change: Callable[[VmSpec], VmSpec] = lambda spec: spec,
    ) -> None:
        """`secondary`: its address on the link; `queues`: of the NIC; `change`: what else both
        sides are."""
        self._change, self._queues = change, queues
        self._directory, self._secondary = directory, secondary
        self._memory_mib = memory_mib
        self._sector_bytes = sector_bytes
        self._disk_bytes = disk_bytes or {}
        self._fill = fill
        self._disk_count = (
            dict.fromkeys("ab", disk_count) if isinstance(disk_count, int) else disk_count
        )
        self._namespace = f"colotq{os.getpid()}"
        self.sides: list[Side] = []
        _pairs.add(self)

    async def __aenter__(self) -> tuple[Side, Side]:
        await self._build()
        try:
            return await self._pair()
        except BaseException:
            await self.__aexit__()
            raise

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Where a pair can be made, step by step."""
        await self._build()
        try:
            yield
        finally:
            await self.__aexit__()

    async def _build(self) -> None:
        namespaces.create(self._namespace)
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        enter(os.open(f"/var/run/netns/{self._namespace}", os.O_RDONLY))
        for host in "ab":
            await asyncio.to_thread(tuntap.create_tap, f"tap{host}", 1500, self._queues)
            _ip("link", "set", f"tap{host}", "address", _CLIENT_MAC)

    async def _pair(self) -> tuple[Side, Side]:
        a = await self.start("a", VmRole.PRIMARY)
        await a.vm.cont()
        b = await self.start("b", VmRole.SECONDARY)
        await self.pair_up(a, b)
        return a, b

    async def pair_up(
        self,
        a: Side,
        b: Side,
        told: Callable[[Progress], None] = lambda progress: None,
        *,
        known: bool = False,
    ) -> None:
        """From a primary that runs and a secondary that was just started. `told`: how the disks are
        copied; `known`: see `Vm.listen`."""
        to = await b.vm.listen(known=known)
        await a.vm.synchronise(to, told)
        await a.vm.enter_colo(to, lambda progress: None)

    async def start(self, host: str, role: VmRole) -> Side:
        """Start one side's QEMU, in place of the one before it."""
        for side in self.sides:
            if side.spec.host == host:
                await side.vm.kill()
        size, count = self._disk_bytes.get(host, DISK_BYTES), self._disk_count[host]
        spec = spec_of(
            host,
            self._directory,
            size,
            count,
            sector_bytes=self._sector_bytes,
            memory_mib=self._memory_mib,
        )
        nics = tuple(replace(nic, queues=self._queues) for nic in spec.nics)
        spec = self._change(replace(spec, nics=nics))
        if host == "b":
            peer = "::1" if ":" in self._secondary else "127.0.0.1"
            spec = replace(spec, link_address=self._secondary, peer_address=peer)
        for disk in spec.replicated:
            if self._fill:
                disk.path.write_bytes(self._fill * (size // len(self._fill)))
        vm = await QemuMachine(spec).start(role, f"{host}/{secrets.token_hex(8)}")
        side = Side(vm, spec)
        vm.subscribe(side.events.append)
        self.sides.append(side)
        return side

    async def face(self, host: str) -> None:
        """From now on the guest that answers is this side's. Waits until it serves."""
        for side in self.sides:
            log = side.spec.run_dir / "serial.log"
            while side.spec.host == "a" and b"serving" not in log.read_bytes():
                await asyncio.sleep(0.05)
        for one in "ab":
            _ip("address", "flush", "dev", f"tap{one}")
        _ip("address", "add", _CLIENT_ADDRESS, "dev", f"tap{host}")

    async def __aexit__(self, *_: object) -> None:
        for side in self.sides:
            await side.vm.kill()
        enter(self._home)
        namespaces.remove(self._namespace)


_pairs: WeakSet[Pair] = WeakSet()


def logs() -> Iterator[tuple[str, str]]:
    """Of each QEMU of the last pairs: what happened, what it and its guest said last."""
    for pair in _pairs:
        for side in pair.sides:
            events = " ".join(kind.name for kind in side.kinds()[-_KINDS:])
            yield f"{side.spec.run_dir}: events", events
            for path in (cmdline.log_path(side.spec), cmdline.console_log_path(side.spec)):
                yield str(path), error_log.tail(path)


def _ip(*words: str) -> None:
    """In the namespace of the calling thread."""
    subprocess.run(["ip", *words], check=True, stdin=subprocess.DEVNULL, timeout=10)
