# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf lab demo`: protect a VM, work with it, break something, check everything.

The client works all the while: a ledger connection that never closes, a download, pings, UDP
echoes and dice. What it saw is compared with what the survivor remembers and has on its disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from colo_ebpf.clock import boot_ns
from colo_ebpf.errors import LabError
from colo_ebpf.lab import processes, topology
from colo_ebpf.lab.client import Client
from colo_ebpf.lab.demo_report import Report
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.scenario import SCENARIOS, Scenario
from colo_ebpf.lab.topology import Guest
from colo_ebpf.lab.workload import (
    PATIENCE_S,
    Datagrams,
    Dice,
    Download,
    Ledger,
    until_serving,
)

_DOWNLOAD_BYTES, _PACE_BYTES_S = 24 << 20, 2 << 20
_ENTRIES_BEFORE, _ENTRIES_AFTER = 60, 60
_POLL_S = 0.02
_OUTGOING = 4  # PACKET_OUTGOING
_SO_TIMESTAMPNS, _STAMP_SPACE = 35, socket.CMSG_SPACE(16)
_COMPARED = {  # what the counters must show, by what it proves
    "frames compared": (("cmp-pvm", "pass", "verified"), ("cmp-svm", "note", "verified")),
    "frames held": (("cmp-pvm", "hold", "unverified"),),
    "frames released by carrier": (("cmp-svm", "carry", "carried"), ("drain", "carry", "carried")),
    "frames flushed": (("flush", "carry", "flushed"),),
}


def demo(lab: Lab, guest: Guest, fault: str) -> Report:
    """Run one; the lab is built before and removed after it. Raises LabError."""
    lab.up(guest)
    try:
        return asyncio.run(_run(lab, fault))
    finally:
        lab.down()


async def _run(lab: Lab, fault: str) -> Report:
    one = Demo(lab, fault)
    try:
        return await one.run()
    except (OSError, TimeoutError) as e:
        raise LabError(f"demo {fault}: the client lost the guest: {e!r}; {one.so_far()}") from e


def _arrival(said: list[tuple[int, int, bytes]]) -> float:
    """When the kernel saw it, as time.monotonic tells it; two sockets are read one by one."""
    for level, kind, data in said:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("qq", data)
            return time.monotonic() - time.time() + float(seconds + nanoseconds / 1e9)
    return time.monotonic()


class Wire:
    """When frames of the VM left a host."""

    def __init__(self, client: Client, port: str) -> None:
        self._socket = client.sniffer(port, topology.MAC)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.at: list[float] = []
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                _, said, _, sender = self._socket.recvmsg(64, _STAMP_SPACE)
                if sender[2] != _OUTGOING:  # what the client's bridge floods to it
                    self.at.append(_arrival(said))

    def frames_after(self, moment: float) -> int:
        """How many since then."""
        return sum(1 for t in self.at if t > moment)

    def close(self) -> None:
        """Stop looking."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


class Demo:
    """One run on a lab that is protected."""

    def __init__(self, lab: Lab, fault: str) -> None:
        self._lab, self._scenario = lab, SCENARIOS[fault]
        self.report = Report(fault)
        self._start, self._start_boot_ns = time.monotonic(), boot_ns()
        self._client = Client(lab.namespace_of("client"), lab.guest_address)
        self.ledger = Ledger(self._client)
        self.download = Download(self._client, _DOWNLOAD_BYTES, _PACE_BYTES_S)
        self.datagrams = [Datagrams(self._client, kind) for kind in ("icmp", "udp")]
        self.dice = Dice(self._client)
        self._stop = asyncio.Event()
        self._fault_at = self._served_at = 0.0

    async def run(self) -> Report:
        """All of it, in order."""
        wires = {host: Wire(self._client, f"{host}0") for host in topology.HOSTS}
        await until_serving(self._client)
        await self._serve_on_a()
        self._note("the guest serves; the client starts to work")
        work = self._work()
        try:
            await self._mismatch()
            await self._until(lambda: len(self.ledger.entries) >= _ENTRIES_BEFORE, work)
            before = await self._statuses()
            await self._break(work, before)
            await self._until(lambda: self.download.ok or work[1].done(), work)
        finally:
            self._stop.set()
            results = await asyncio.gather(*work, return_exceptions=True)
        errors = [repr(e) for e in results if isinstance(e, BaseException)]
        self.report.check("the client's work went through", not errors, "; ".join(errors) or "all")
        await self._verify(before, wires)
        for wire in wires.values():
            wire.close()
        return self.report

    def so_far(self) -> str:
        """How far it came, what the daemons say now, and their logs' ends."""
        last = self.report.timeline[-1][2] if self.report.timeline else "nothing yet"
        counted = f"{len(self.ledger.entries)} entries, {self.download.received_bytes} bytes"
        return f"after {last!r}; {counted}; {self._lab.said()}"

    # -- what happens --------------------------------------------------------------------

    def _work(self) -> list[asyncio.Task[None]]:
        jobs = [self.ledger.run(self._stop), self.download.run(), self.dice.run(self._stop)]
        jobs += [one.run(self._stop) for one in self.datagrams]
        return [asyncio.create_task(job) for job in jobs]

    async def _serve_on_a(self) -> None:
        """The faults are written for that. On a busy machine a host may have been silent for too
        long before the demo began, and the other one has taken over."""
        status = await self._until_status("a", lambda s: s["protected"])
        if status["state"] == "primary":
            return
        self._note("the VM is served by host b: the hosts change places")
        await asyncio.to_thread(self._lab.ask, "a", "switchover")
        await self._until_status("a", lambda s: s["protected"] and s["state"] == "primary")

    async def _mismatch(self) -> None:
        """The dice differ in every roll: a mismatch, and the checkpoint it causes."""
        await self.dice.roll()

        def caused(status: dict[str, Any]) -> int:
            return int(status["checkpoints"]["by_cause"].get("mismatch", 0))

        status = await self._until_status("a", lambda s: caused(s) > 0)
        self._note(f"the dice differed: {caused(status)} checkpoint(s) for a mismatch")
        self.report.check("a mismatch causes a checkpoint", True, f"{caused(status)} so far")

    async def _break(self, work: list[asyncio.Task[None]], before: dict[str, Any]) -> None:
        survivor, scenario = self._scenario.survivor, self._scenario
        self._note(f"FAULT: {scenario.what}")
        self._fault_at = time.monotonic()
        await asyncio.to_thread(scenario.inject, self._lab)
        generation = before[survivor]["record"]["generation"]

        def alone(status: dict[str, Any]) -> bool:
            record = status["record"]
            owner = f"solo {survivor}/" in record["text"] or f"paired {survivor}/" in record["text"]
            return record["generation"] > generation + 1 and owner and status["mode"] != "withhold"

        await self._until_status(survivor, alone)
        self._served_at = time.monotonic()
        self._note(f"{survivor} goes on alone")
        wanted = len(self.ledger.entries) + _ENTRIES_AFTER
        await self._until(lambda: len(self.ledger.entries) >= wanted, work)
        if scenario.later is not None:
            await self._later(scenario, before)

    async def _later(self, scenario: Scenario, before: dict[str, Any]) -> None:
        """The loser comes back: its VM is ended without having said a word."""
        pid = before[scenario.loser]["vm_process"]["pid"]
        assert scenario.later is not None
        self._note(f"host {scenario.loser} continues")
        await asyncio.to_thread(scenario.later, self._lab)
        namespace = self._lab.places[scenario.loser].namespace
        async with asyncio.timeout(PATIENCE_S):
            while pid in await asyncio.to_thread(processes.in_namespace, namespace):
                await asyncio.sleep(_POLL_S)
        self._note(f"host {scenario.loser} has ended its old VM")

    # -- waiting -------------------------------------------------------------------------

    async def _until(self, done: Callable[[], bool], work: list[asyncio.Task[None]]) -> None:
        """Until it is true, or the work that should make it true has failed."""
        async with asyncio.timeout(2 * PATIENCE_S):
            while not done() and not any(t.done() and t.exception() for t in work):
                await asyncio.sleep(_POLL_S)

    async def _until_status(
        self, host: str, wanted: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                status = await asyncio.to_thread(self._lab.ask, host)
                if status is not None and wanted(status):
                    return dict(status)
                await asyncio.sleep(_POLL_S)

    async def _statuses(self) -> dict[str, Any]:
        return {host: await self._until_status(host, lambda s: True) for host in topology.HOSTS}

    def _note(self, text: str) -> None:
        self.report.timeline.append((time.monotonic() - self._start, "demo", text))
        self._lab.say(text)

    # -- what is checked -----------------------------------------------------------------

    async def _verify(self, before: dict[str, Any], wires: dict[str, Wire]) -> None:
        survivor = self._scenario.survivor
        self._note("comparing what the client saw with what the survivor remembers")
        await self.ledger.recheck()
        await self.dice.recheck()
        after = await self._until_status(survivor, lambda s: s["disk"] in ("whole", "replicated"))
        image = await asyncio.to_thread(self._lab.places[survivor].disk.read_bytes)
        self._check_client(image)
        self._check_plane(before["a"], wires)
        if self._scenario.survivor == "a":
            await self._check_one_alone()
        self._tell(before, after)
        self._figures(before, after)

    def _check_client(self, image: bytes) -> None:
        report, led, down = self.report, self.ledger, self.download
        missing = led.missing_on(image)
        entries = len(led.entries)
        report.check(
            "ledger: one connection, nothing lost or contradicted",
            not led.wrong and entries > _ENTRIES_BEFORE + _ENTRIES_AFTER,
            "; ".join(led.wrong[:3]) or f"{entries} entries",
        )
        report.check(
            "ledger: the survivor's disk holds every entry",
            not missing,
            f"missing: {missing[:5]}" if missing else f"{entries} blocks compared",
        )
        report.check("download: digest", down.ok, f"{down.received_bytes} of {down.total_bytes}")
        report.check(
            "dice: the survivor remembers every value seen",
            not self.dice.wrong and len(self.dice.seen) > 1,
            "; ".join(self.dice.wrong[:3]) or f"{len(self.dice.seen)} rolls",
        )
        for one in self.datagrams:
            report.check(
                f"{one.kind}: answers are true",
                not one.wrong and len(one.answered) > 0,
                "; ".join(one.wrong[:3]) or f"{len(one.answered)} of {one.sent} answered",
            )

    def _check_plane(self, primary: dict[str, Any], wires: dict[str, Wire]) -> None:
        rows = {(r["program"], r["verdict"], r["reason"]): r["packets"] for r in primary["packets"]}
        for name, wanted in _COMPARED.items():
            seen = sum(rows.get(row, 0) for row in wanted)
            self.report.check(name, seen > 0, f"{seen} before the fault")
        loser = self._scenario.loser
        spoken = wires[loser].frames_after(self._served_at)
        heard = wires[self._scenario.survivor].frames_after(self._served_at)
        self.report.check(
            f"only the survivor speaks: none of {loser}'s frames after the failover",
            spoken == 0 and heard > 0,
            f"{spoken} of {loser}, {heard} of {self._scenario.survivor}",
        )

    async def _check_one_alone(self) -> None:
        """The loser, if its daemon lives, has ended its VM or made a fresh one as a replica."""
        status = await asyncio.to_thread(self._lab.ask, self._scenario.loser)
        state = status["state"] if status else "dead"
        self.report.check("exactly one VM goes solo", state not in ("solo", "primary"), state)

    # -- what is told --------------------------------------------------------------------

    def _tell(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        loser = self._scenario.loser
        histories = {self._scenario.survivor: after, loser: before[loser]}
        for host, status in histories.items():
            for line in status["history"]:
                at_s = (line["at_ns"] - self._start_boot_ns) / 1e9
                if at_s > 0:
                    self.report.timeline.append((at_s, host, line["sentence"]))

    def _figures(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        report, until = self.report, self._served_at + 2
        gaps = [("ledger", self.ledger.gaps)] + [(d.kind, d.gaps) for d in self.datagrams]
        for name, gap in gaps:
            longest = gap.longest_ms(self._fault_at - 0.1, until)
            report.figure(f"{name}: longest silence around the fault", f"{longest:.0f} ms")
        recent = before["a"]["checkpoints"]["recent"]
        pauses = sorted(one["pause_ms"] for one in recent)
        reactions = sorted(o["reaction_ms"] for o in recent if o["cause"] == "mismatch")
        report.figure("checkpoints before the fault", str(before["a"]["checkpoints"]["by_cause"]))
        for name, values in (("checkpoint pause", pauses), ("mismatch to trigger", reactions)):
            if values:
                middle = values[len(values) // 2]
                report.figure(name, f"median {middle:.1f} ms, longest {values[-1]:.1f} ms")
        state = f"{after['state']}: {after['sentence']}"
        report.figure(f"at the end, host {self._scenario.survivor}", state)
