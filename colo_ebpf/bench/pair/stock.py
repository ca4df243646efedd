# SPDX-License-Identifier: GPL-2.0-only
"""A pair under QEMU's own COLO, as its documentation sets it up, with nothing of ours.

Source: docs/COLO-FT.txt of QEMU 7.2 and docs/system/qemu-colo.rst: the filters, the block
replication, the order of commands, and QEMU's defaults for all that they do not name. The guest,
its memory and its devices are the lab's; so is, under TCG, the library without which QEMU 7.2
hangs at its first checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from colo_ebpf.control.qemu.monitor import Monitors
from colo_ebpf.datapath.net import bridges, namespaces, tuntap
from colo_ebpf.errors import BenchError, QmpError
from colo_ebpf.lab import mounts, network, processes, topology
from colo_ebpf.lab.topology import BRIDGE, GUEST_MTU, HOSTS, TAP, Guest, Place
from colo_ebpf.model import VmEvent, VmEventKind
from colo_ebpf.storage import image

QEMU = "qemu-system-x86_64"
_DISK_BYTES = 64 << 20
_QMP_MS, _START_S, _CHECKPOINT_S, _POLL_S = 20_000, 60.0, 30.0, 0.02
_NBD_PORT, _MIGRATION_PORT, _MIRROR_PORT, _COMPARE_PORT = 9999, 9998, 9003, 9004
_OUT_PORT, _IN_PORT = 9005, 9001
DELAY_MS = 20_000  # QEMU's default; writing it takes a checkpoint at once


def pauses_ms(events: Sequence[VmEvent], since_ns: int) -> tuple[float, ...]:
    """Of the stops that began since then and ended. Pure."""
    found: list[float] = []
    stopped_ns: int | None = None
    for event in events:
        if event.kind is VmEventKind.STOP and event.at_ns >= since_ns:
            stopped_ns = event.at_ns
        elif event.kind is VmEventKind.RESUME and stopped_ns is not None:
            found.append((event.at_ns - stopped_ns) / 1e6)
            stopped_ns = None
    return tuple(found)


class StockPair:
    """Both QEMUs in the namespaces of a lab of their own."""

    def __init__(
        self, name: str, guest: Guest, accel: str, capabilities: Sequence[str] = ()
    ) -> None:
        """`capabilities`: of QEMU's migration, besides x-colo."""
        self._name, self._guest, self._accel = name, guest, accel
        self._capability_names = ("x-colo", *capabilities)
        self._places = {host: Place(name, host) for host in HOSTS}
        self._monitors: dict[str, Monitors] = {}
        self._events: list[VmEvent] = []

    # -- life ----------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[StockPair]:
        """Both run under COLO; nothing is left when it ends."""
        await asyncio.to_thread(self._remove)
        try:
            await asyncio.to_thread(self._build)
            await self._start()
            await self._pair()
            yield self
        finally:
            for monitors in self._monitors.values():
                await monitors.close()
            await asyncio.to_thread(self._remove)

    def _build(self) -> None:
        mounts.mount_memory(topology.directory(self._name))
        network.build(self._name)
        for place in self._places.values():
            place.run_dir.mkdir(parents=True)
            namespaces.run_in(place.namespace, lambda: tuntap.create_tap(TAP, GUEST_MTU))
            self._image(place)
        # Only the primary's tap is on the LAN: the secondary would get all that is flooded twice.
        a = self._places["a"].namespace
        namespaces.run_in(a, lambda: bridges.join(TAP, BRIDGE))
        image.make_overlays(self._overlays(), self._places["b"].disk.stat().st_size)

    def _image(self, place: Place) -> None:
        if self._guest.disk:
            shutil.copyfile(self._guest.disk, place.disk)
            return
        with place.disk.open("wb") as file:
            file.truncate(_DISK_BYTES)

    def _overlays(self) -> tuple[Path, Path]:
        directory = self._places["b"].directory
        return directory / "active.qcow2", directory / "hidden.qcow2"

    def _remove(self) -> None:
        for place in self._places.values():
            processes.end(place.namespace)
        network.remove(self._name)
        mounts.remove(topology.directory(self._name), topology.ROOT.parent)

    async def _start(self) -> None:
        for host in HOSTS:
            place = self._places[host]
            argv = self._primary() if host == "a" else self._secondary()
            environment = dict(os.environ)
            if self._guest.preload and self._accel == "tcg":
                environment["LD_PRELOAD"] = self._guest.preload
            with (place.run_dir / "qemu.log").open("wb") as log:
                await asyncio.create_subprocess_exec(
                    *("nsenter", f"--net=/run/netns/{place.namespace}", *argv),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
        for host in HOSTS:
            await self._connect(host)
        serial = self._places["a"].run_dir / "serial.log"
        await self._until(lambda: b"serving" in serial.read_bytes(), "the guest does not serve")

    async def _connect(self, host: str) -> None:
        paths = [self._places[host].run_dir / name for name in ("qmp", "qmp-oob")]
        await self._until(lambda: all(p.exists() for p in paths), "QEMU did not start")
        keep: Callable[[VmEvent], None] = self._events.append if host == "a" else lambda event: None
        self._monitors[host] = Monitors(f"stock {host}", _QMP_MS, keep)
        await self._monitors[host].connect(*paths)

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_S
        while not condition():
            if time.monotonic() > deadline:
                raise BenchError(f"stock QEMU: {what}\n{self._logs()}")
            await asyncio.sleep(_POLL_S)

    def _logs(self) -> str:
        texts = []
        for place in self._places.values():
            with contextlib.suppress(OSError):
                texts.append((place.run_dir / "qemu.log").read_text(errors="replace")[-2000:])
        return "\n".join(texts)

    # -- QEMU's documented way into a pair -------------------------------------------------

    async def _pair(self) -> None:
        a, b = self._monitors["a"], self._monitors["b"]
        await a.run("stop")  # which flushes: the images must be equal
        await asyncio.to_thread(shutil.copyfile, self._places["a"].disk, self._places["b"].disk)
        address = self._places["b"].link_address
        server = {"host": address, "port": str(_NBD_PORT)}
        await self._capabilities(b)
        await b.run("migrate-incoming", uri=f"tcp:{address}:{_MIGRATION_PORT}")
        await b.run("nbd-server-start", addr={"type": "inet", "data": server})
        await b.run("nbd-server-add", device="parent0", writable=True)
        await a.run(
            "blockdev-add",
            driver="nbd",
            node_name="nbd0",
            server={"type": "inet", **server},
            export="parent0",
            detect_zeroes="on",
        )
        await a.run("x-blockdev-change", parent="quorum0", node="nbd0")
        await self._capabilities(a)
        await a.run("migrate", uri=f"tcp:{address}:{_MIGRATION_PORT}")
        deadline = time.monotonic() + _START_S
        while not (await a.run("query-status"))["running"]:
            if time.monotonic() > deadline:
                raise BenchError(f"stock QEMU: not in COLO\n{self._logs()}")
            await asyncio.sleep(_POLL_S)

    async def _capabilities(self, monitors: Monitors) -> None:
        state = [{"capability": name, "state": True} for name in self._capability_names]
        await monitors.run("migrate-set-capabilities", capabilities=state)

    async def version(self) -> tuple[int, int, int]:
        """QEMU's."""
        found = (await self._monitors["a"].run("query-version"))["qemu"]
        return found["major"], found["minor"], found["micro"]

    async def every(self, delay_ms: int) -> None:
        """Checkpoints with this period, the first one at once."""
        await self._monitors["a"].run("migrate-set-parameters", x_checkpoint_delay=delay_ms)

    def pauses_ms(self, since_ns: int) -> tuple[float, ...]:
        """Of the checkpoints that began since then and ended: from STOP to RESUME."""
        return pauses_ms(self._events, since_ns)

    async def checkpoint_ms(self) -> float:
        """Take one; from STOP to RESUME of the primary."""
        self._events.clear()
        try:
            await self._monitors["a"].run("migrate-set-parameters", x_checkpoint_delay=DELAY_MS)
        except QmpError as e:
            raise BenchError(f"stock QEMU: {e}\n{self._logs()}") from e
        deadline = time.monotonic() + _CHECKPOINT_S
        while not self._times(VmEventKind.RESUME):
            if time.monotonic() > deadline:
                raise BenchError(f"stock QEMU: no checkpoint\n{self._logs()}")
            await asyncio.sleep(_POLL_S)
        return (self._times(VmEventKind.RESUME)[0] - self._times(VmEventKind.STOP)[0]) / 1e6

    def _times(self, kind: VmEventKind) -> list[int]:
        return [event.at_ns for event in self._events if event.kind is kind]

    # -- command lines -------------------------------------------------------------------

    def _common(self, place: Place) -> list[str]:
        guest = self._guest
        argv = [QEMU, "-name", f"stock-{secrets.token_hex(4)}"]
        argv += ["-machine", f"pc,accel={self._accel}"]
        argv += ["-cpu", "host" if self._accel == "kvm" else "max", "-smp", "1"]
        argv += ["-m", str(guest.memory_mib), "-nodefaults", "-display", "none", "-no-shutdown"]
        argv += ["-serial", f"file:{place.run_dir / 'serial.log'}"]
        argv += ["-kernel", guest.kernel, "-initrd", guest.initrd, "-append", guest.append]
        for name in ("qmp", "qmp-oob"):
            path = place.run_dir / name
            argv += ["-chardev", f"socket,id={name},path={path},server=on,wait=off"]
            argv += ["-mon", f"chardev={name},mode=control"]
        argv += ["-netdev", f"tap,id=hn0,ifname={TAP},vhost=off,script=no,downscript=no"]
        argv += ["-device", f"virtio-net-pci,id=e0,netdev=hn0,mac={topology.MAC},romfile="]
        return argv

    def _primary(self) -> list[str]:
        place = self._places["a"]
        argv = self._common(place)
        own = f"host={place.link_address}"
        for chardev in (
            f"mirror0,{own},port={_MIRROR_PORT},server=on,wait=off",
            f"compare1,{own},port={_COMPARE_PORT},server=on,wait=on",
            f"compare0,host=127.0.0.1,port={_IN_PORT},server=on,wait=off",
            f"compare0-0,host=127.0.0.1,port={_IN_PORT}",
            f"compare_out,host=127.0.0.1,port={_OUT_PORT},server=on,wait=off",
            f"compare_out0,host=127.0.0.1,port={_OUT_PORT}",
        ):
            argv += ["-chardev", f"socket,id={chardev}"]
        for thing in (
            "filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0,vnet_hdr_support",
            "filter-redirector,netdev=hn0,id=redire0,queue=rx,indev=compare_out,vnet_hdr_support",
            "filter-redirector,netdev=hn0,id=redire1,queue=rx,outdev=compare0,vnet_hdr_support",
            "iothread,id=iothread1",
            "colo-compare,id=comp0,primary_in=compare0-0,secondary_in=compare1,"
            "outdev=compare_out0,iothread=iothread1,vnet_hdr_support",
        ):
            argv += ["-object", thing]
        return [*argv, *self._disk(f"children.0.file.filename={place.disk},children.0.driver=raw")]

    def _secondary(self) -> list[str]:
        place = self._places["b"]
        peer = self._places["a"].link_address
        active, hidden = self._overlays()
        argv = self._common(place)
        argv += ["-chardev", f"socket,id=red0,host={peer},port={_MIRROR_PORT},reconnect=1"]
        argv += ["-chardev", f"socket,id=red1,host={peer},port={_COMPARE_PORT},reconnect=1"]
        for thing in (
            "filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0,vnet_hdr_support",
            "filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1,vnet_hdr_support",
            "filter-rewriter,id=rew0,netdev=hn0,queue=all,vnet_hdr_support",
        ):
            argv += ["-object", thing]
        argv += ["-drive", f"if=none,id=parent0,file.filename={place.disk},driver=raw"]
        argv += [
            "-drive",
            "if=none,id=childs0,driver=replication,mode=secondary,file.driver=qcow2,"
            f"top-id=colo-disk0,file.file.filename={active},file.backing.driver=qcow2,"
            f"file.backing.file.filename={hidden},file.backing.backing=parent0",
        ]
        return [*argv, *self._disk("children.0=childs0"), "-incoming", "defer"]

    def _disk(self, child: str) -> list[str]:
        quorum = f"driver=quorum,node-name=quorum0,read-pattern=fifo,vote-threshold=1,{child}"
        return [
            *("-drive", f"if=none,id=colo-disk0,{quorum}"),
            *("-device", "virtio-blk-pci,drive=colo-disk0"),
        ]
