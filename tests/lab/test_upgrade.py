# SPDX-License-Identifier: GPL-2.0-only
"""Daemons told to end and started again under load, the same version or one with other maps."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from colo_ebpf.datapath.bpf import abi
from colo_ebpf.lab import processes
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import HOSTS
from colo_ebpf.lab.workload import LEDGER, PATIENCE_S, until_serving
from tests.capabilities import require
from tests.lab import clean, cli, end_daemon

_SLOW = """
import asyncio, sys
from colo_ebpf.cli.main import main
from colo_ebpf.control.qemu.process import QemuMachine
from colo_ebpf.control.peer.state import PeerView

adopt, receive, since = QemuMachine.adopt, PeerView.receive, []

async def late(self):
    await asyncio.sleep(0.6)
    return await adopt(self)

def deaf(self, datagram, path, now_ns):
    since.append(now_ns)
    return now_ns - since[0] > 100_000_000 and receive(self, datagram, path, now_ns)

QemuMachine.adopt, PeerView.receive = late, deaf
sys.exit(main())
"""  # as where all processors are busy: it hears nothing for longer than peer-timeout-ms
_NEWER = (
    "import sys; from colo_ebpf.datapath.bpf import abi; abi.ABI_VERSION += 1; "
    "from colo_ebpf.cli.main import main; sys.exit(main())"
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Lab]:
    """A protected pair whose guest serves."""
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotestu"))
    try:
        lab.up(choose(Wanted()))
        yield lab
    finally:
        lab.down()


class _Ledger:
    """One connection; entries one after the other until told to stop, every answer right."""

    def __init__(self, lines: Lines) -> None:
        self.lines, self.count = lines, 0
        self.stop = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            self.count = int((await self.lines.ask("SUM")).split()[1])
        while not self.stop.is_set():
            self.count += 1
            async with asyncio.timeout(PATIENCE_S):
                reply = await self.lines.ask(f"ADD {self.count} entry")
            assert reply.startswith(f"OK {self.count} ")

    async def goes_on(self, task: asyncio.Task[None]) -> None:
        """Some more answers come."""
        seen = self.count
        async with asyncio.timeout(PATIENCE_S):
            while self.count < seen + 5:
                if task.done():
                    await task
                await asyncio.sleep(0.02)


def _end_vm(lab: Lab, host: str) -> None:
    pids = processes.pids_of(lab.places[host].namespace, "vm")
    processes.send(pids, signal.SIGTERM)
    lab.wait(
        lambda: processes.pids_of(lab.places[host].namespace, "vm") == [],
        f"the VM of {host} does not end",
        30,
    )


def _checkpoints(lab: Lab, host: str) -> int:
    return int(lab.ask(host)["checkpoints"]["total"])


def _solo(lab: Lab) -> str:
    """What the daemons have logged, for a test in which nobody should go alone."""
    logs = (f"{host}:\n{lab.places[host].log.read_text()}" for host in HOSTS)
    return "somebody went solo\n" + "\n".join(logs)


def _primary(lab: Lab) -> str:
    (host,) = [host for host in HOSTS if (lab.ask(host) or {}).get("role") == "primary"]
    return host


@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_a_restart_under_load_loses_no_connection_and_no_protection(pair: Lab, role: str) -> None:
    async def scenario() -> None:
        client = Client(pair.namespace_of("client"), pair.guest_address)
        await until_serving(client)
        ledger = _Ledger(Lines(await client.connect(LEDGER)))
        task = asyncio.create_task(ledger.run())
        primary = _primary(pair)
        host = primary if role == "primary" else pair.places[primary].other.host
        generation = pair.ask(primary)["record"]["generation"]
        vms = {h: processes.pids_of(pair.places[h].namespace, "vm") for h in HOSTS}
        for _ in range(3):
            await ledger.goes_on(task)
            await asyncio.to_thread(end_daemon, pair, host)
            pair.start_daemon(pair.places[host])
            await asyncio.to_thread(pair.wait_protected)
            before = _checkpoints(pair, primary)
            assert cli(pair, primary, "checkpoint").returncode == 0
            await asyncio.to_thread(
                pair.wait, lambda n=before: _checkpoints(pair, primary) > n, "no checkpoint", 30
            )
            await ledger.goes_on(task)
        ledger.stop.set()
        await task
        ledger.lines.close()
        assert pair.ask(primary)["record"]["generation"] == generation, _solo(pair)
        assert {h: processes.pids_of(pair.places[h].namespace, "vm") for h in HOSTS} == vms

    asyncio.run(scenario())


def _run(lab: Lab, host: str, program: str) -> subprocess.Popen[bytes]:
    """Another daemon than the lab's own."""
    return lab.start_daemon(lab.places[host], (sys.executable, "-c", program))


@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_a_daemon_that_is_slow_to_start_does_not_hold_its_own_deafness_against_the_peer(
    pair: Lab, role: str
) -> None:
    primary = _primary(pair)
    host = primary if role == "primary" else pair.places[primary].other.host
    generation = pair.ask(primary)["record"]["generation"]
    end_daemon(pair, host)
    _run(pair, host, _SLOW)
    pair.wait_protected()
    assert pair.ask(primary)["record"]["generation"] == generation, _solo(pair)


async def _refused(lab: Lab, host: str) -> None:
    vm = processes.pids_of(lab.places[host].namespace, "vm")
    refused = await asyncio.to_thread(_run(lab, host, _NEWER).wait, 60)
    assert refused == 2
    said = lab.places[host].log.read_text().splitlines()[-1]
    assert "a VM runs on tap0 with a data plane of version" in said
    assert processes.pids_of(lab.places[host].namespace, "vm") == vm


async def _upgrade(lab: Lab, host: str) -> None:
    """The secondary's host, as docs/operate/upgrade.md says."""
    await asyncio.to_thread(end_daemon, lab, host)
    await _refused(lab, host)
    await asyncio.to_thread(_end_vm, lab, host)
    _run(lab, host, _NEWER)
    await asyncio.to_thread(lab.wait_protected)
    (left,) = (lab.places[host].bpffs / "colo_ebpf").glob(f"v*/{lab.name}")
    assert left.parent.name == f"v{abi.ABI_VERSION + 1}"


def test_one_host_after_the_other_gets_another_version_of_the_maps(pair: Lab) -> None:
    async def scenario() -> None:
        client = Client(pair.namespace_of("client"), pair.guest_address)
        await until_serving(client)
        ledger = _Ledger(Lines(await client.connect(LEDGER)))
        task = asyncio.create_task(ledger.run())
        first = _primary(pair)
        second = pair.places[first].other.host
        await _upgrade(pair, second)
        await ledger.goes_on(task)
        done = await asyncio.to_thread(cli, pair, first, "switchover", "--yes")
        assert done.returncode == 0, done.stderr
        await asyncio.to_thread(pair.wait_protected)
        await ledger.goes_on(task)
        await _upgrade(pair, first)
        await ledger.goes_on(task)
        done = await asyncio.to_thread(cli, pair, second, "switchover", "--yes")
        assert done.returncode == 0, done.stderr
        await asyncio.to_thread(pair.wait_protected)
        await ledger.goes_on(task)
        ledger.stop.set()
        await task
        ledger.lines.close()

    asyncio.run(scenario())
