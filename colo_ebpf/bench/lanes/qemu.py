# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's own COLO proxy in front of the same guests: two QEMUs without a CPU, hubs and filters.

The filters sit on the client-side taps, so that their directions are those of QEMU's manual.
`notify_dev` has colo-compare ask there for checkpoints; nobody takes one.
"""

from __future__ import annotations

import struct
import subprocess
import time
from collections import Counter
from pathlib import Path

from colo_ebpf.bench import names
from colo_ebpf.bench.lanes.lane import HOST, PVM, SVM, Lane
from colo_ebpf.bench.lanes.wires import ETH, guest_cpus, ip
from colo_ebpf.datapath.net import bridges, netdev
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.topology import BRIDGE

_QEMU = "qemu-system-x86_64"
_START_S = 15.0
_REQUEST_BYTES = len(struct.pack("!I", 0) + b"DO_CHECKPOINT")
_PRIMARY_SOCKETS = ("mirror0", "compare1", "compare0", "compare_out", "notify")


def common_arguments(tap: str, guest_tap: str) -> list[str]:
    """A QEMU that is nothing but a hub between a tap to the clients and one to the guest."""
    plain = "script=no,downscript=no"
    return [
        *(_QEMU, "-machine", "none", "-nodefaults", "-display", "none"),
        *("-netdev", f"tap,id=hn0,ifname={tap},{plain}"),
        *("-netdev", f"tap,id=g0,ifname={guest_tap},{plain}"),
        *("-netdev", "hubport,id=hp0,hubid=0,netdev=hn0"),
        *("-netdev", "hubport,id=hp1,hubid=0,netdev=g0"),
    ]


def primary_arguments(directory: Path) -> list[str]:
    """The primary's sockets and filters, and the comparison."""
    out = []
    for name in _PRIMARY_SOCKETS:
        out += ["-chardev", f"socket,id={name},path={directory / name},server=on,wait=off"]
    for name, peer in (("compare0-0", "compare0"), ("compare_out0", "compare_out")):
        out += ["-chardev", f"socket,id={name},path={directory / peer}"]
    objects = (
        "filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0",
        "filter-redirector,id=redire0,netdev=hn0,queue=rx,indev=compare_out",
        "filter-redirector,id=redire1,netdev=hn0,queue=rx,outdev=compare0",
        "iothread,id=iothread1",
        "colo-compare,id=comp0,primary_in=compare0-0,secondary_in=compare1,outdev=compare_out0,"
        "iothread=iothread1,notify_dev=notify",
    )
    return out + [word for one in objects for word in ("-object", one)]


def secondary_arguments(directory: Path) -> list[str]:
    """The secondary's, which connect to the primary's sockets."""
    out = []
    for name, peer in (("red0", "mirror0"), ("red1", "compare1")):
        out += ["-chardev", f"socket,id={name},path={directory / peer},reconnect=1"]
    objects = (
        "filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0",
        "filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1",
        "filter-rewriter,id=rew0,netdev=hn0,queue=all",
    )
    return out + [word for one in objects for word in ("-object", one)]


class QemuLane(Lane):
    """TCP timestamps are off: with them hardly anything connects."""

    name = names.QEMU

    def build(self) -> None:
        wires = self.wires
        self._sockets = wires.directory / "qemu"
        self._sockets.mkdir(exist_ok=True)
        for what in (HOST, PVM, SVM):
            wires.add(what)
        wires.add_client(HOST)
        self.set_timestamps(0, 0, 0)
        self._start("p", PVM, primary_arguments(self._sockets))
        self._start("s", SVM, secondary_arguments(self._sockets))
        wires.inside(HOST, lambda: bridges.join("tapp", BRIDGE))
        for guest, cpu in zip((PVM, SVM), guest_cpus(), strict=True):
            wires.finish_guest(guest, cpu)
            wires.serve(guest, cpu)
        argv = [str(wires.directory / "beside"), "count", str(self._sockets / "notify")]
        self._counter = wires.start(HOST, argv, subprocess.DEVNULL)

    def _start(self, side: str, guest: str, arguments: list[str]) -> None:
        wires = self.wires
        tap, guest_tap = f"tap{side}", f"gst{side}"
        for name in _PRIMARY_SOCKETS if side == "p" else ():
            (self._sockets / name).unlink(missing_ok=True)
        log = (wires.directory / f"qemu-{side}.log").open("wb")
        with log:
            process = wires.start(HOST, [*common_arguments(tap, guest_tap), *arguments], log)
        self._await_taps(process, Path(log.name), (tap, guest_tap))
        ip(wires.name(HOST), f"link set {guest_tap} netns {wires.name(guest)}")
        ip(wires.name(HOST), f"link set {tap} up txqueuelen 10000")
        ip(wires.name(guest), f"link set {guest_tap} name {ETH} txqueuelen 10000")

    def _await_taps(
        self, process: subprocess.Popen[bytes], log: Path, taps: tuple[str, ...]
    ) -> None:
        """And the sockets: QEMU makes taps first, and `notify` is needed at once."""
        deadline = time.monotonic() + _START_S
        while True:
            there = self.wires.inside(HOST, lambda: all(netdev.exists(tap) for tap in taps))
            if there and (self._sockets / "notify").exists():
                return
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{_QEMU} does not start: {log.read_text().strip()}")
            time.sleep(0.01)

    def requests(self) -> Counter[str]:
        """It does not say why."""
        counter = self._counter
        assert counter.stdin is not None
        assert counter.stdout is not None
        try:
            counter.stdin.write(b"\n")
            counter.stdin.flush()
            said = counter.stdout.readline()
        except OSError as e:
            raise BenchError(f"lane {self.name}: QEMU's notify_dev has closed: {e}") from e
        if not said:
            raise BenchError(f"lane {self.name}: QEMU's notify_dev has closed")
        return Counter({"unexplained": int(said) // _REQUEST_BYTES})
