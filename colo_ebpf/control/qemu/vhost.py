# SPDX-License-Identifier: GPL-2.0-only
"""vhost-net: a kernel thread carries the frames of a NIC between its tap and the guest.

The daemon opens the device, for QEMU is another user. A descriptor is for one queue of one VM.
QEMU alone keeps it: whoever has it open keeps the guest's memory after QEMU's end.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from colo_ebpf.control.qemu.cmdline import NicSpec
from colo_ebpf.errors import VmError

DEVICE = Path("/dev/vhost-net")
_ABSENT = (errno.ENOENT, errno.ENODEV, errno.ENXIO)


@contextmanager
def opened(nics: Iterable[NicSpec], device: Path = DEVICE) -> Iterator[tuple[int, ...]]:
    """One descriptor for each queue of each NIC that has vhost, in order, closed at the end.
    VmError if the kernel has none."""
    fds: list[int] = []
    try:
        for nic in nics:
            for _ in range(nic.queues if nic.vhost else 0):
                fds.append(_open(device))
        yield tuple(fds)
    finally:
        for fd in fds:
            os.close(fd)


def require(device: Path = DEVICE) -> str:
    """What was found. VmError if no VM could use it. The kernel may load a module for this."""
    os.close(_open(device))
    return f"{device}: can be opened"


def _open(device: Path) -> int:
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        absent = e.errno in _ABSENT
        remedy = "modprobe vhost_net" if absent else f"chown root {device}"
        what = "this kernel has no vhost-net" if absent else "vhost-net cannot be used"
        raise VmError(
            f"vm.nic.vhost: {what} ({device}: {e.strerror}): {remedy}, or set vhost = false"
        ) from e
