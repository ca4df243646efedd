# SPDX-License-Identifier: GPL-2.0-only
"""Real QEMUs under COLO: pairing, checkpoints, failover of either side, adoption."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from colo_ebpf.control.qemu import support
from colo_ebpf.control.qemu.process import QemuMachine
from colo_ebpf.control.qemu.support import Use
from colo_ebpf.datapath.net import netdev
from colo_ebpf.errors import StorageError, VmError
from colo_ebpf.model import Settled, VmEventKind, VmRole
from tests.capabilities import require
from tests.qemu.pair import (
    GUEST_ADDRESS,
    LIFE,
    Ledger,
    Pair,
    Side,
    checkpoint,
    committed,
    spec_of,
    take_over,
    until,
)


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "qemu", "guest")


async def test_checkpoints_then_the_secondary_takes_over(tmp_path: Path) -> None:
    async with Pair(tmp_path) as (a, b):
        for _ in range(3):
            await checkpoint(a, b)
        assert b.vm.settled() is Settled.NEW
        await take_over(a, b)
        await b.vm.announce()
        assert await b.vm.running()
        await committed(b)


@pytest.mark.parametrize("address", ["127.0.0.2", "::1"])
async def test_a_stranger_at_the_disks_port_delays_no_takeover(
    tmp_path: Path, address: str
) -> None:
    """As found: one that had connected and said nothing, and QEMU waited for it for ever."""
    async with Pair(tmp_path, secondary=address) as (a, b):
        await checkpoint(a, b)
        strangers = [socket.create_connection((address, b.spec.nbd_port)) for _ in range(2)]
        assert strangers[0].recv(8) == b"NBDMAGIC", "the server has begun to talk"
        await take_over(a, b)
        assert await b.vm.running()
        await committed(b)
        assert await b.vm.running(), "QEMU answers"
        for one in strangers:
            while one.recv(100):
                pass
            one.close()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", b.spec.nbd_port))
        await b.vm.take_over()  # a daemon that does not know how far the last one came


async def test_a_process_that_is_stopped_is_noticed_and_so_is_its_coming_back(
    tmp_path: Path,
) -> None:
    async with Pair(tmp_path) as (_, b):

        def seen(kind: VmEventKind) -> bool:
            b.vm.look()
            return kind in b.kinds()

        os.kill(b.vm.pid, signal.SIGSTOP)
        await until(lambda: seen(VmEventKind.HUNG), "HUNG")
        os.kill(b.vm.pid, signal.SIGCONT)
        await until(lambda: seen(VmEventKind.ANSWERS), "ANSWERS")
        assert [k for k in b.kinds() if k in (VmEventKind.HUNG, VmEventKind.ANSWERS)] == [
            VmEventKind.HUNG,
            VmEventKind.ANSWERS,
        ]


async def test_a_replica_that_was_powered_off_is_run_again_by_a_load(tmp_path: Path) -> None:
    """What the epoch machines count on: such a load has no STOP on the secondary."""
    pair = Pair(tmp_path)
    async with pair as (a, b):
        await pair.face("a")
        await checkpoint(a, b)
        await pair.face("b")
        await asyncio.to_thread(_power_off)
        await until(lambda: b.kinds()[-2:] == [VmEventKind.SHUTDOWN, VmEventKind.STOP], "off")
        assert b.events[-2].data["guest"] is True
        assert abs(int(str(b.events[-2].data["at_s"])) - time.time()) < 60
        assert (await b.vm.powered_off(), b.vm.settled()) == (True, Settled.NEW)
        assert b.vm.past().off_at_s == b.events[-2].data["at_s"]
        at = len(b.events)
        await checkpoint(a, b)
        assert b.vm.past().off_at_s is None
        assert b.kinds()[at:] == [VmEventKind.RESUME]
        assert not await b.vm.powered_off()
        assert await b.vm.running()


def _power_off() -> None:
    with socket.create_connection((GUEST_ADDRESS, LIFE), timeout=30) as s:
        s.sendall(b"POWEROFF\n")


def _open_overlays(side: Side) -> list[str]:
    """Overlay files that a side's QEMU has open, as the kernel knows."""
    descriptors = Path(f"/proc/{side.vm.pid}/fd").iterdir()
    names = {str(path) for disk in side.spec.disks for path in disk.overlays}
    return [name for fd in descriptors if (name := os.readlink(fd)) in names]


async def test_the_overlays_are_merged_when_it_says_so(tmp_path: Path) -> None:
    """Too early a yes would let a host start from an image that lacks what was in its memory."""
    pair = Pair(tmp_path)
    async with pair as (a, b):
        await pair.face("a")
        await checkpoint(a, b)
        await pair.face("b")
        await asyncio.to_thread(Ledger().append, 5_000)
        await take_over(a, b)
        while not await b.vm.overlays_committed():
            pass
        assert not _open_overlays(b)


async def test_the_primary_continues_alone_from_a_hung_peer(tmp_path: Path) -> None:
    async with Pair(tmp_path) as (a, b):
        await checkpoint(a, b)
        os.kill(b.vm.pid, signal.SIGSTOP)
        await a.vm.trigger_checkpoint()
        await a.vm.continue_alone()
        assert await a.vm.running()
        os.kill(b.vm.pid, signal.SIGCONT)


async def test_adoption_finds_the_running_instance(tmp_path: Path) -> None:
    async with Pair(tmp_path) as (a, _b):
        await a.vm._qmp.close()
        adopted = await QemuMachine(a.spec).adopt()
        assert adopted is not None
        assert (adopted.instance, adopted.role) == (a.vm.instance, VmRole.PRIMARY)
        assert await adopted.running()
        await adopted.kill()


async def test_a_replica_that_dies_before_its_memory_came_leaves_its_ports_free(
    tmp_path: Path,
) -> None:
    async with Pair(tmp_path).place():
        machine = QemuMachine(spec_of("b", tmp_path))
        for _ in range(2):
            vm = await machine.start(VmRole.SECONDARY, f"b/{secrets.token_hex(8)}")
            try:
                await vm.listen()
                os.kill(vm.pid, signal.SIGKILL)
                assert await vm.ended(within_s=30)
            except BaseException:
                await vm.kill()
                raise
        await vm.kill()


async def test_nobody_waits_for_an_event_of_a_qemu_that_is_gone(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    async with pair.place():
        b = await pair.start("b", VmRole.SECONDARY)
        waiting = asyncio.create_task(b.vm._expect(VmEventKind.COLO_EXIT, 20_000, "take over"))
        await asyncio.sleep(0)
        os.kill(b.vm.pid, signal.SIGKILL)
        with pytest.raises(VmError, match="it ended while COLO_EXIT was waited for"):
            await waiting


async def test_the_end_of_colo_that_no_daemon_heard_is_told_to_the_next(tmp_path: Path) -> None:
    async with Pair(tmp_path) as (a, b):
        await b.vm._qmp.close()
        os.kill(a.vm.pid, signal.SIGKILL)
        await until(lambda: b.vm.past().left, "COLO does not end")
        adopted = await QemuMachine(b.spec).adopt()
        assert adopted is not None
        heard: list[VmEventKind] = []
        adopted.subscribe(lambda event: heard.append(event.kind))
        adopted.tell_missed()
        assert heard == [VmEventKind.COLO_EXIT]
        await adopted.take_over()
        assert await adopted.running()
        await adopted.kill()


async def test_an_image_in_use_is_refused(tmp_path: Path) -> None:
    async with Pair(tmp_path) as (a, _b):
        with pytest.raises(StorageError, match="in use by another process"):
            await QemuMachine(a.spec).start(VmRole.PRIMARY, "a/0000000000000000")


async def test_a_qemu_that_cannot_start_says_why(tmp_path: Path) -> None:
    spec = dataclasses.replace(spec_of("a", tmp_path), machine="nonesuch")
    with pytest.raises(VmError, match="unsupported machine type"):
        await QemuMachine(spec).start(VmRole.PRIMARY, "a/0000000000000000")


async def test_a_qemu_that_ends_at_once_is_told_so(tmp_path: Path) -> None:
    """Before anybody could look at it: as found, that was no VmError."""
    spec = dataclasses.replace(spec_of("a", tmp_path), qemu="/bin/true")
    with pytest.raises(VmError, match="did not start: it ended at once"):
        await QemuMachine(spec).start(VmRole.PRIMARY, "a/0000000000000000")


async def test_a_qemu_without_colo_is_refused(tmp_path: Path) -> None:
    fake = Path(__file__).with_name("fake_qemu.py")
    spec = dataclasses.replace(spec_of("a", tmp_path), qemu=str(fake), preload="")
    with pytest.raises(VmError, match="has no x-colo capability; install a QEMU built with COLO"):
        await QemuMachine(spec).start(VmRole.PRIMARY, "a/0000000000000000")


async def test_a_qemu_without_replication_is_refused(tmp_path: Path) -> None:
    """It lists the capability, and refuses it when it is set."""
    qemu = shutil.which("qemu-system-x86_64-microvm")
    if qemu is None:
        pytest.skip("needs qemu-system-x86_64-microvm, which Debian has since 13")
    with pytest.raises(VmError, match=r"cannot run COLO, install .* built with COLO and replicat"):
        await support.probe(Use(qemu))


async def test_the_qemu_here_can_run_colo_but_not_every_machine() -> None:
    qemu = "qemu-system-x86_64"
    version = await support.probe(Use(qemu))
    if version < (11, 0, 0):
        with pytest.raises(VmError, match=r"machine q35: QEMU before 11\.0 can crash"):
            await support.probe(Use(qemu, machine="q35"))


async def test_a_machine_the_qemu_cannot_carry_is_never_started(tmp_path: Path) -> None:
    if await support.probe(Use("qemu-system-x86_64")) >= (11, 0, 0):
        pytest.skip("needs a QEMU before 11.0: since then q35 is carried")
    spec = dataclasses.replace(spec_of("a", tmp_path), machine="q35")
    with pytest.raises(VmError, match=r'machine q35: .* set machine = "pc"'):
        await QemuMachine(spec).start(VmRole.PRIMARY, "a/0000000000000000")


async def test_a_qemu_that_the_tcg_helper_cannot_mend_says_so(tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-x86_64"
    source = tmp_path / "program.c"
    source.write_text("int qemu_init(void) { return 0; }\nint main(void) { return 0; }\n")
    await asyncio.to_thread(subprocess.run, ["gcc", "-rdynamic", "-o", program, source], check=True)
    spec = dataclasses.replace(spec_of("a", tmp_path), qemu=str(program))
    with pytest.raises(VmError, match="libtcgdirty: this QEMU has no qemu_get_cpu: under TCG"):
        await QemuMachine(spec).start(VmRole.PRIMARY, "a/0000000000000000")


async def test_images_of_different_size_are_not_paired(tmp_path: Path) -> None:
    pair = Pair(tmp_path, disk_bytes={"b": 8 << 20})
    with pytest.raises(StorageError, match="images differ in size: 16777216 bytes here, 8388608"):
        async with pair:
            pass


def _talk(address: str) -> bytes:
    """A word with the guest's echo service, from the namespace of the calling thread."""
    with socket.create_connection((address, 7), timeout=30) as s:
        s.sendall(b"are you there?")
        return s.recv(100)


async def _takes_over_and_answers(a: Side, b: Side) -> None:
    await take_over(a, b)
    await asyncio.to_thread(netdev.add_address, "tapb", "192.168.77.1", 24)
    assert await asyncio.to_thread(_talk, "192.168.77.10") == b"are you there?"


async def test_the_secondary_is_whole_after_checkpoints_from_early_boot_on(tmp_path: Path) -> None:
    """Under TCG a page that was missed makes its guest crash: see guest/lab-tcg."""
    async with Pair(tmp_path) as (a, b):
        serial_a, serial_b = (side.spec.run_dir / "serial.log" for side in (a, b))
        for _ in range(25):
            await checkpoint(a, b)
            assert b"panic" not in serial_b.read_bytes()
        await until(lambda: b"serving" in serial_a.read_bytes(), "the guest serves")
        for _ in range(5):
            await checkpoint(a, b)
        await _takes_over_and_answers(a, b)


_PCI_COMMAND, _BUS_MASTER_OFF = 4, 0x0103
_VIRTIO = 0x1AF4


async def _forbid_dma(side: Side) -> int:
    """What a guest does to its devices while it looks for them. Returns to how many."""
    (bus,) = await side.vm._qmp.run("query-pci")
    found = [one for one in bus["devices"] if one["id"]["vendor"] == _VIRTIO]
    for one in found:
        place = 1 << 31 | one["slot"] << 11 | one["function"] << 8 | _PCI_COMMAND
        for line in (f"o /w 0xcf8 {place:#x}", f"o /h 0xcfc {_BUS_MASTER_OFF:#x}"):
            await side.vm._qmp.run("human-monitor-command", command_line=line)
    return len(found)


async def test_devices_work_although_a_load_came_while_the_replica_looked_for_them(
    tmp_path: Path,
) -> None:
    """Checkpoints of a guest that boots: the replica is still, or already, where the primary is
    not. What its QEMU remembers of that and no checkpoint replaces would last for good."""
    async with Pair(tmp_path) as (a, b):
        serial_a = a.spec.run_dir / "serial.log"
        await until(lambda: b"serving" in serial_a.read_bytes(), "the guest serves")
        await checkpoint(a, b)
        assert await _forbid_dma(b) == 2, "one NIC and one disk"
        await checkpoint(a, b)
        await _takes_over_and_answers(a, b)
        await asyncio.to_thread(Ledger().append, 8)
