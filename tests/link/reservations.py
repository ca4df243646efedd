# SPDX-License-Identifier: GPL-2.0-only
"""What is tried on a kernel with a SCSI target (tcm_loop): one disk, and two initiators that reach
it, as two hosts do. Each is a function that asserts.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.control.host.capabilities import as_daemon
from colo_ebpf.errors import StorageError
from colo_ebpf.storage import reservation
from tests.link.wires import eventually

_CONFIG = Path("/sys/kernel/config")
_TARGET = _CONFIG / "target"
_STORE = _TARGET / "core" / "fileio_0" / "disk"
_BYTES = 16 << 20
_BLOCK_BYTES = 4096
_APPEARS_S = 30
_PORTS = {"a": "naa.600140500000000a", "b": "naa.600140500000000b"}
_KEYS = {host: reservation.key_of("web", host) for host in "abc"}
_REFUSED = (errno.EBADE, errno.EIO)
_PREEMPT = reservation._iow(203, reservation._PREEMPTION.size)


@dataclass(frozen=True)
class Host:
    """One initiator, and the device that the disk is there."""

    name: str
    device: Path

    def takes(self, other: str = "") -> None:
        """As its daemon does before its VM may write."""
        other = other or ("b" if self.name == "a" else "a")
        reservation.take(self.device, _KEYS[self.name], _KEYS[other])

    def writes(self) -> bool:
        """As QEMU does, past the kernel's cache; whether the disk let it."""
        try:
            self._io(os.O_RDWR | os.O_DIRECT, lambda fd, block: os.pwritev(fd, [block], 0))
        except OSError as e:
            assert e.errno in _REFUSED, e
            return False
        return True

    def reads(self) -> bool:
        """As a secondary does."""
        got = self._io(os.O_RDONLY | os.O_DIRECT, lambda fd, block: os.preadv(fd, [block], 0))
        return got == _BLOCK_BYTES

    def _io(self, flags: int, do: Callable[[int, mmap.mmap], int]) -> int:
        fd = os.open(self.device, flags)
        try:
            with mmap.mmap(-1, _BLOCK_BYTES) as block:
                return do(fd, block)
        finally:
            os.close(fd)


@contextlib.contextmanager
def _disk() -> Iterator[tuple[Host, Host]]:
    """A new one, which nobody has reserved.

    This target never ends a PREEMPT AND ABORT: its worker waits for its own work, in
    core_tmr_lun_reset. PREEMPT differs in that requests on their way are let be.
    """
    reservation._PREEMPT_AND_ABORT = _PREEMPT
    if not _TARGET.exists():
        subprocess.run(["mount", "-t", "configfs", "none", str(_CONFIG)], check=True)
    _TARGET.mkdir(exist_ok=True)
    Path("/var/target/pr").mkdir(parents=True, exist_ok=True)
    _STORE.mkdir(parents=True)
    (_STORE / "control").write_text(f"fd_dev_name=/tmp/disk.raw,fd_dev_size={_BYTES}")
    (_STORE / "enable").write_text("1")
    try:
        yield _host("a"), _host("b")
    finally:
        for name in _PORTS:
            _remove(name)
        _STORE.rmdir()


def _group(name: str) -> Path:
    return _TARGET / "loopback" / _PORTS[name] / "tpgt_1"


def _host(name: str) -> Host:
    before = set(Path("/sys/block").glob("sd*"))
    group = _group(name)
    lun = group / "lun" / "lun_0"
    lun.mkdir(parents=True)
    (group / "nexus").write_text(_PORTS[name].replace("naa.6", "naa.5"))
    (lun / "disk").symlink_to(_STORE)

    def found() -> set[Path]:
        return set(Path("/sys/block").glob("sd*")) - before

    assert eventually(lambda: bool(found()), _APPEARS_S), "no disk appears"
    device = Path("/dev") / found().pop().name
    assert eventually(device.exists, _APPEARS_S), f"no {device} appears"
    return Host(name, device)


def _remove(name: str) -> None:
    group = _group(name)
    if not group.exists():
        return
    (group / "lun" / "lun_0" / "disk").unlink(missing_ok=True)
    (group / "lun" / "lun_0").rmdir()
    group.rmdir()
    group.parent.rmdir()


def before_a_reservation_both_hosts_can_write() -> None:
    with _disk() as (a, b):
        assert a.writes() and b.writes()


def only_the_host_that_reserved_the_disk_writes() -> None:
    with _disk() as (a, b):
        a.takes()
        assert a.writes()
        assert not b.writes()
        assert b.reads()


def who_takes_it_over_cuts_the_other_one_off_again_and_again() -> None:
    with _disk() as (a, b):
        for _ in range(3):
            a.takes()
            assert (a.writes(), b.writes()) == (True, False)
            b.takes()
            assert (a.writes(), b.writes()) == (False, True)
            assert a.reads()


def what_is_taken_again_changes_nothing() -> None:
    with _disk() as (a, b):
        for _ in range(3):
            a.takes()
            assert (a.writes(), b.writes()) == (True, False)


def a_host_that_died_behind_its_registration_is_cut_off() -> None:
    with _disk() as (a, b):
        a.takes()
        with reservation._Disk(b.device) as disk:
            disk.register(_KEYS["b"])
        assert b.writes(), "who is registered may write"
        a.takes()
        assert (a.writes(), b.writes()) == (True, False)


def what_somebody_else_has_reserved_is_not_taken() -> None:
    with _disk() as (a, b):
        reservation.take(b.device, _KEYS["c"], _KEYS["a"])
        try:
            a.takes(other="b")
        except StorageError as e:
            assert "is reserved by somebody who is neither of the two hosts" in str(e), e
        else:
            raise AssertionError("a stranger's disk was taken")
        assert b.writes()


def what_is_only_tried_leaves_nothing() -> None:
    with _disk() as (a, b):
        for host in (a, b):
            reservation.probe(host.device, _KEYS[host.name])
        assert a.writes() and b.writes()
        a.takes()
        for host in (a, b):
            reservation.probe(host.device, _KEYS[host.name])
        assert (a.writes(), b.writes()) == (True, False)


def what_cannot_be_reserved_says_so() -> None:
    file = Path("/tmp/no-disk")
    file.write_bytes(bytes(_BLOCK_BYTES))
    for path, says in ((file, "no SCSI, NVMe or multipath disk"), (file / "x", "cannot be opened")):
        try:
            reservation.take(path, _KEYS["a"], _KEYS["b"])
        except StorageError as e:
            assert says in str(e), e
        else:
            raise AssertionError(f"{path} was reserved")


def the_daemons_rights_suffice_from_linux_6_6_on() -> None:
    release = tuple(map(int, os.uname().release.split(".")[:2]))
    with _disk() as (a, b):
        try:
            as_daemon(a.takes)
        except StorageError as e:
            assert release < (6, 6), e
            assert "that takes Linux 6.6 or later" in str(e), e
        else:
            assert release >= (6, 6)
            assert (a.writes(), b.writes()) == (True, False)


ALL: list[Callable[[], None]] = [
    before_a_reservation_both_hosts_can_write,
    only_the_host_that_reserved_the_disk_writes,
    who_takes_it_over_cuts_the_other_one_off_again_and_again,
    what_is_taken_again_changes_nothing,
    a_host_that_died_behind_its_registration_is_cut_off,
    what_somebody_else_has_reserved_is_not_taken,
    what_is_only_tried_leaves_nothing,
    what_cannot_be_reserved_says_so,
    the_daemons_rights_suffice_from_linux_6_6_on,
]
