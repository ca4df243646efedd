# SPDX-License-Identifier: GPL-2.0-only
"""A real pair whose VMs have one disk, a file that both QEMUs open."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from colo_ebpf.control.qemu import cmdline
from colo_ebpf.control.qemu.cmdline import DiskSpec, VmSpec
from colo_ebpf.errors import StorageError, VmError
from colo_ebpf.lab import ledger
from colo_ebpf.model import VmEventKind, VmRole
from colo_ebpf.storage.nbd import Connection, ExportAddress
from colo_ebpf.storage.sample import Sampling
from colo_ebpf.storage.verify import Comparison, Range
from tests.capabilities import require
from tests.qemu.pair import (
    DISK_BYTES,
    TEXT,
    Ledger,
    Pair,
    Side,
    checkpoint,
    committed,
    take_over,
    until,
)
from tests.qemu.test_disks import both

OLD, NEW, OTHER, LATER = 0x11, 0x22, 0x33, 0x44
AT, BYTES = 1 << 20, 64 << 10  # a place on the disk, and a cluster of the overlays
_TIMEOUT_MS = 20_000
_UNTIL_WRITTEN_S = 1.0  # of a write that nothing holds up: it takes some milliseconds


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "qemu", "guest")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The disk of both."""
    path = tmp_path / "shared.raw"
    path.write_bytes(bytes([OLD]) * DISK_BYTES)
    return path


def on(path: Path, *extra_args: str) -> Callable[[VmSpec], VmSpec]:
    """The first disk is that one, on either side."""

    def change(spec: VmSpec) -> VmSpec:
        first, *others = spec.disks
        shared = replace(first, path=path, shared=True)
        return replace(spec, disks=(shared, *others), extra_args=extra_args)

    return change


async def _io(side: Side, command: str, device: str = "colo-disk0") -> None:
    line = f'qemu-io {device} "{command}"'
    assert not await side.vm._qmp.run("human-monitor-command", command_line=line)


async def _write(side: Side, pattern: int, at: int) -> None:
    """As the VM of that side does."""
    await _io(side, f"write -P {pattern:#x} {at} {BYTES}")


def _on_disk(path: Path, at: int) -> set[int]:
    with path.open("rb") as file:
        file.seek(at)
        return set(file.read(BYTES))


@asynccontextmanager
async def _reader(side: Side) -> AsyncIterator[Connection]:
    """Reads what the VM of that side would."""
    quorum = side.spec.disks[0].quorum
    await side.vm._qmp.run("nbd-server-add", device=quorum, name="view", writable=False)
    address = ExportAddress("view", side.spec.link_address, side.spec.nbd_port)
    try:
        with Connection(address, _TIMEOUT_MS) as connection:
            yield connection
    finally:
        await side.vm._qmp.run("nbd-server-remove", name="view", mode="hard")


async def _seen(reader: Connection, at: int) -> set[int]:
    reading = reader.start_read(at, BYTES)
    return set(await asyncio.to_thread(reader.finish_read, reading))


async def _take_over(a: Side, b: Side) -> None:
    """Until the disk is whole."""
    await take_over(a, b)
    await committed(b)
    assert not any(path.exists() for one in b.spec.disks for path in one.overlays)


def _holds(path: Path, numbers: range) -> bool:
    image = path.read_bytes()
    entries = [ledger.block(image, number) for number in numbers]
    return all(entry is not None and entry[1] == TEXT.decode() for entry in entries)


async def test_the_secondary_reads_the_last_checkpoint_and_takes_over_with_it(
    tmp_path: Path, disk: Path
) -> None:
    async with Pair(tmp_path, change=on(disk)) as (a, b):
        await checkpoint(a, b)
        async with _reader(b) as reader:
            await _write(a, NEW, AT)
            assert (await _seen(reader, AT), _on_disk(disk, AT)) == ({OLD}, {NEW})
            aside = AT + 2 * BYTES
            await _write(b, OTHER, aside)
            assert (await _seen(reader, aside), _on_disk(disk, aside)) == ({OTHER}, {OLD})

            await checkpoint(a, b)
            assert (await _seen(reader, AT), await _seen(reader, aside)) == ({NEW}, {OLD})

            await _write(a, LATER, AT)
            assert (await _seen(reader, AT), _on_disk(disk, AT)) == ({NEW}, {LATER})
            await _write(b, OTHER, AT + 4 * BYTES)
        await _take_over(a, b)
        assert _on_disk(disk, AT) == {NEW}, "what came after the checkpoint is undone"
        assert _on_disk(disk, aside) == {OLD}
        assert _on_disk(disk, AT + 4 * BYTES) == {OTHER}


_Image = Callable[[DiskSpec, VmRole, str], str]


def _stops_at_will(image: _Image) -> _Image:
    """The secondary's way to the disk has a place where a read can be held up."""

    def slow(disk: DiskSpec, role: VmRole, protocol: str) -> str:
        if disk.overlay_dir.parent.name == "a":
            return image(disk, role, protocol)
        return (
            f"if=none,id={disk.image},driver=raw,file.driver=blkdebug,file.image.driver=file,"
            f"file.image.filename={disk.path},file.image.locking=off,cache.direct=on"
        )

    return slow


@pytest.mark.parametrize("copy_on_read", ["off", "on"])
async def test_a_read_that_races_the_first_write_of_its_cluster(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, copy_on_read: str
) -> None:
    """Without copy-on-read it finds what the primary's VM writes after the checkpoint. With it the
    write waits for the read."""
    monkeypatch.setattr(cmdline, "_image", _stops_at_will(cmdline._image))
    change = on(disk, "-set", f"drive.hidden-drive0.copy-on-read={copy_on_read}")

    def one_sided(spec: VmSpec) -> VmSpec:
        changed = change(spec)
        return changed if spec.host == "b" else replace(changed, extra_args=())

    async with Pair(tmp_path, change=one_sided) as (a, b):
        await checkpoint(a, b)
        async with _reader(b) as reader:
            await _io(b, "break read_aio slow", "parent0")
            reading = reader.start_read(AT, BYTES)
            await _io(b, "wait_break slow", "parent0")
            await _io(a, f"aio_write -P {NEW:#x} {AT} {BYTES}")
            with suppress(TimeoutError):
                async with asyncio.timeout(_UNTIL_WRITTEN_S):
                    while _on_disk(disk, AT) != {NEW}:
                        await asyncio.sleep(0.01)
            await _io(b, "resume slow", "parent0")
            found = set(await asyncio.to_thread(reader.finish_read, reading))
            assert found == ({OLD} if copy_on_read == "on" else {NEW})
            await until(lambda: _on_disk(disk, AT) == {NEW}, "the write that waited is done")
            assert await _seen(reader, AT) == {OLD}


async def test_a_write_that_the_secondary_did_not_take_is_done_by_the_primary_alone(
    tmp_path: Path, disk: Path
) -> None:
    """Nor has the guest seen an error. Then it is protected again, and nothing was copied."""
    pair = Pair(tmp_path, change=on(disk))
    async with pair as (a, b):
        await pair.face("a")
        await checkpoint(a, b)
        os.kill(b.vm.pid, signal.SIGKILL)
        await until(lambda: not b.vm.alive, "the replica's end")
        entries = Ledger()
        writing = asyncio.create_task(asyncio.to_thread(entries.append, 8))
        await until(lambda: VmEventKind.BLOCK_ERROR in a.kinds(), "the VM stops")
        assert _on_disk(disk, 0) == {OLD}
        await a.vm.continue_alone()
        await writing
        assert _holds(disk, range(1, 9))

        again = await pair.start("b", VmRole.SECONDARY)
        await pair.pair_up(a, again)
        await checkpoint(a, again)
        await asyncio.to_thread(entries.append, 200)
        await checkpoint(a, again)
        await _take_over(a, again)
        assert _holds(disk, range(1, 209))


async def _sample(a: Side, b: Side) -> Comparison:
    """As `colo-ebpf verify` does."""
    loop = asyncio.get_running_loop()

    def settle() -> None:
        asyncio.run_coroutine_threadsafe(checkpoint(a, b), loop).result(_TIMEOUT_MS / 1000)

    (one,) = await a.vm.lend_images()
    try:
        with both(one) as (here, there):
            sampling = Sampling(here, there, settle, random.Random(5))
            return await asyncio.to_thread(sampling.run, DISK_BYTES, 10)
    finally:
        await a.vm.take_back_images()


async def test_both_hosts_read_the_same_of_one_disk(tmp_path: Path, disk: Path) -> None:
    async with Pair(tmp_path, change=on(disk)) as (a, b):
        await checkpoint(a, b)
        await _write(a, NEW, AT)
        found = await _sample(a, b)
        assert (found.read_bytes, found.differences) == (DISK_BYTES, ())
        assert found.again_bytes >= BYTES, "what was written needs a checkpoint"
        await checkpoint(a, b)
        await _take_over(a, b)


async def test_a_host_that_reads_another_disk_is_found(tmp_path: Path, disk: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(disk.read_bytes())

    def change(spec: VmSpec) -> VmSpec:
        return on(other if spec.host == "b" else disk)(spec)

    async with Pair(tmp_path, change=change) as (a, b):
        await checkpoint(a, b)
        await _write(a, NEW, AT)
        found = await _sample(a, b)
        assert found.differences == (Range(AT, BYTES),)


async def test_nobody_takes_over_before_the_first_checkpoint(tmp_path: Path, disk: Path) -> None:
    """The secondary's VM has read the disk as the primary's VM went on writing it."""
    async with Pair(tmp_path, change=on(disk)) as (a, b):
        with pytest.raises(VmError, match="no checkpoint yet"):
            await b.vm.take_over()
        await checkpoint(a, b)
        await _take_over(a, b)
        assert await b.vm.running()


def _writes(path: Path) -> subprocess.CompletedProcess[str]:
    """Another QEMU's tool, started by hand."""
    words = ["qemu-io", "-f", "raw", "-c", f"write 0 {BYTES}", str(path)]
    return subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)


async def test_no_other_qemu_writes_to_it_as_long_as_one_of_ours_runs(
    tmp_path: Path, disk: Path
) -> None:
    async with Pair(tmp_path, change=on(disk)) as (a, b):
        assert 'Failed to get "write" lock' in _writes(disk).stderr
        os.kill(b.vm.pid, signal.SIGKILL)
        await until(lambda: not b.vm.alive, "the replica's end")
        assert 'Failed to get "write" lock' in _writes(disk).stderr
        await a.vm.kill()
        assert _writes(disk).returncode == 0


@contextmanager
def _other_qemu(path: Path) -> Iterator[None]:
    """It has the disk open for writing."""
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write(b"length\n")
        other.stdin.flush()
        other.stdout.readline()
        try:
            yield
        finally:
            other.stdin.close()


async def test_it_is_not_begun_beside_another_qemu_that_writes(tmp_path: Path, disk: Path) -> None:
    with _other_qemu(disk), pytest.raises(StorageError, match="in use by another process"):
        async with Pair(tmp_path, change=on(disk)):
            pass


async def test_one_disk_is_shared_and_the_other_one_copied(tmp_path: Path, disk: Path) -> None:
    pair = Pair(tmp_path, disk_count=2, change=on(disk))
    async with pair as (a, b):
        await pair.face("a")
        entries = Ledger()
        for _ in range(3):
            await asyncio.to_thread(entries.append, 40)
            await checkpoint(a, b)
        copied = b.spec.disks[1].path
        await _take_over(a, b)
        for path, first in ((disk, 1), (copied, 2)):
            image = path.read_bytes()
            for number in range(first, entries.count + 1, 2):
                entry = ledger.block(image, number)
                assert entry is not None and entry[1] == TEXT.decode(), (path, number)


async def test_two_disks_are_shared(tmp_path: Path, disk: Path) -> None:
    """Their epochs begin at one moment."""
    second = tmp_path / "second.raw"
    second.write_bytes(disk.read_bytes())

    def change(spec: VmSpec) -> VmSpec:
        disks = zip(spec.disks, (disk, second), strict=True)
        return replace(spec, disks=tuple(replace(d, path=p, shared=True) for d, p in disks))

    async with Pair(tmp_path, disk_count=2, change=change) as (a, b):
        await checkpoint(a, b)
        for device in ("colo-disk0", "colo-disk1"):
            await _io(a, f"write -P {NEW:#x} {AT} {BYTES}", device)
        await checkpoint(a, b)
        for device in ("colo-disk0", "colo-disk1"):
            await _io(a, f"write -P {LATER:#x} {AT} {BYTES}", device)
        assert (_on_disk(disk, AT), _on_disk(second, AT)) == ({LATER}, {LATER})
        await _take_over(a, b)
        assert (_on_disk(disk, AT), _on_disk(second, AT)) == ({NEW}, {NEW})
