# SPDX-License-Identifier: GPL-2.0-only
"""Only one host writes to a disk that two hosts reach: persistent reservations (SCSI, NVMe), by the
kernel's own calls (linux/pr.h).

Each host registers a key with the disk. The reservation lets those write that are registered, and
everybody read ("write exclusive, registrants only"). Who takes the disk takes the other one's
registration away, so that one host is registered at most. The disk itself refuses what the other
one sends, or has on its way. The disk keeps that through a loss of power if it can.

A multipath device registers on all its paths. A partition, an LVM volume and a loop device cannot
be reserved by themselves.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
from pathlib import Path

from colo_ebpf.errors import StorageError


def _iow(number: int, size_bytes: int) -> int:
    """A request of the kernel's that takes a structure: `_IOW('p', number, ...)`."""
    return 1 << 30 | size_bytes << 16 | ord("p") << 8 | number


_REGISTRATION = struct.Struct("=QQII")  # old key, new key, flags, padding
_RESERVATION = struct.Struct("=QII")  # key, type, flags
_PREEMPTION = struct.Struct("=QQII")  # own key ("old"), other's ("new"), type, flags
_REGISTER = _iow(200, _REGISTRATION.size)
_RESERVE = _iow(201, _RESERVATION.size)
_PREEMPT_AND_ABORT = _iow(204, _PREEMPTION.size)
_IGNORE_KEY = 1  # PR_FL_IGNORE_KEY: whatever was registered before
_REGISTRANTS_WRITE = 3  # PR_WRITE_EXCLUSIVE_REG_ONLY
# Of what the disk says the lowest byte is SCSI's status, or NVMe's; above it are words of drivers.
_CONFLICT = (0x18, 0x83)  # of SCSI, which newer kernels say for all; of NVMe
_ATTENTION = 2  # "check condition": the disk tells first that a reservation was taken away
_TRIES = 3
_NEEDS_LINUX = "Linux 6.6 or later"  # before, it takes CAP_SYS_ADMIN, which the daemon gives up


def key_of(vm: str, host: str) -> int:
    """What a host registers for a VM: the same on both hosts, and after each start."""
    digest = hashlib.sha256(f"{vm}\0{host}".encode()).digest()
    return int.from_bytes(digest[:8]) or 1


def take(path: Path, own: int, other: int) -> None:
    """From now on only this host writes to the disk; done again it changes nothing.

    `own`, `other`: the keys of the two hosts. StorageError if the disk does not take it, or if
    somebody else has reserved it.
    """
    with _Disk(path) as disk:
        disk.register(own)
        disk.preempt(own, other)
        disk.reserve(own)


def probe(path: Path, own: int) -> None:
    """Whether the disk would take a reservation; nothing on it is changed. StorageError says why it
    would not."""
    with _Disk(path) as disk:
        disk.try_key(own)


class _Disk:
    """Opened for writing: so the kernel lets one reserve that is not CAP_SYS_ADMIN."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> _Disk:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as e:
            raise StorageError(f"disk {self._path}: cannot be opened: {e.strerror}") from e
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def register(self, own: int) -> None:
        """Whatever was registered from here before. NVMe has two requests for that: a host that has
        another key there already replaces it, which Linux asks for if an old key is named."""
        status = self._call(_REGISTER, _REGISTRATION.pack(0, own, _IGNORE_KEY, 0))
        if _conflicts(status):
            status = self._call(_REGISTER, _REGISTRATION.pack(own, own, _IGNORE_KEY, 0))
        self._registered(status)

    def try_key(self, own: int) -> None:
        """Replace the key by itself. A disk that knows reservations does so, or says that the key
        is not registered. (To register one would not do: Linux cannot take a key of NVMe back, and
        a host that stays registered may write.)"""
        status = self._call(_REGISTER, _REGISTRATION.pack(own, own, 0, 0))
        self._registered(0 if _conflicts(status) else status)

    def _registered(self, status: int) -> None:
        if status:
            raise StorageError(
                f"disk {self._path}: registers no key for a reservation (status {status:#x}): "
                "does the storage have persistent reservations, and are they switched on?"
            )

    def preempt(self, own: int, other: int) -> None:
        """What the other host has registered or reserved is gone, and its requests are ended.

        The kernel's document has the keys the other way round; its drivers for SCSI and NVMe take
        the first one for who asks.
        """
        status = self._call(_PREEMPT_AND_ABORT, _PREEMPTION.pack(own, other, _REGISTRANTS_WRITE, 0))
        if status and not _conflicts(status):  # a conflict: there is nothing of it
            raise StorageError(
                f"disk {self._path}: does not take the other host's reservation away (status "
                f"{status:#x})"
            )

    def reserve(self, own: int) -> None:
        """If nobody has it, or we do."""
        status = self._call(_RESERVE, _RESERVATION.pack(own, _REGISTRANTS_WRITE, 0))
        if _conflicts(status):
            raise StorageError(
                f"disk {self._path}: is reserved by somebody who is neither of the two hosts: "
                "look with `sg_persist --in --read-full-status`"
            )
        if status:
            raise StorageError(f"disk {self._path}: cannot be reserved (status {status:#x})")

    def _call(self, request: int, words: bytes) -> int:
        """What the disk said: 0 is done."""
        for _ in range(_TRIES):
            try:
                status = int(fcntl.ioctl(self._fd, request, bytearray(words)))
            except OSError as e:
                raise StorageError(f"disk {self._path}: {_why(e)}") from e
            if status & 0xFF != _ATTENTION:
                break
        return status


def _conflicts(status: int) -> bool:
    return status & 0xFF in _CONFLICT


def _why(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return (
            f"may not be reserved: that takes {_NEEDS_LINUX}, and a whole disk, no partition of it"
        )
    instead = "leave fence.reservation out, and set fence.command"
    if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
        return f"cannot be reserved: it is no SCSI, NVMe or multipath disk; {instead}"
    if error.errno == errno.EINVAL:  # sense "invalid field": what tgt says
        return (
            "cannot be reserved: the storage does not take what Linux asks for, most likely that "
            f"it keeps a key through a loss of power (APTPL); {instead}"
        )
    return f"cannot be reserved: {error.strerror}"
