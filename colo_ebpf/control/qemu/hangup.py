# SPDX-License-Identifier: GPL-2.0-only
"""Hang up on whoever is connected to a TCP port of another process, and close the port.

QEMU stops its NBD server only once all who are connected have gone, and its main loop stands until
then. One that has connected and says nothing, a port scanner perhaps, never goes (QEMU before 9.1).
So its sockets are shut down from here (shutdown(2)), by copies of its descriptors
(pidfd_getfd(2), Linux 5.6), and QEMU closes them. Only then may it be told to stop its server:
what it has not seen by then it does not see any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from colo_ebpf.errors import VmError

_PIDFD_GETFD = 438  # of every architecture
_LISTEN = "0A"
_TABLES = ("tcp", "tcp6")
_libc = ctypes.CDLL(None, use_errno=True)


def hang_up(pid: int, port: int) -> dict[int, str]:
    """Returns the connections: descriptors of the process, and what they are. It still has to
    close them (`closed`). VmError if the kernel does not let us."""
    try:
        listening, connected = _sockets(pid, port)
        pidfd = os.pidfd_open(pid)
        try:
            for fd in (*listening, *connected):  # the port first: nobody comes in between
                _shut(pidfd, fd)
        finally:
            os.close(pidfd)
    except OSError as e:
        raise VmError(f"process {pid}: cannot close its port {port}: {e.strerror}") from e
    return connected


def closed(pid: int, connections: Mapping[int, str]) -> bool:
    """The process has none of them open any more."""
    return all(_target(pid, fd) != what for fd, what in connections.items())


def _target(pid: int, fd: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return ""


def _sockets(pid: int, port: int) -> tuple[dict[int, str], dict[int, str]]:
    """Its descriptors on that port: those that listen, and all others."""
    states = dict(_states(pid, port))
    listening: dict[int, str] = {}
    connected: dict[int, str] = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        what = _target(pid, int(link.name))
        state = states.get(what.removeprefix("socket:[").removesuffix("]"))
        if state is not None:
            (listening if state == _LISTEN else connected)[int(link.name)] = what
    return listening, connected


def _states(pid: int, port: int) -> list[tuple[str, str]]:
    """Inode and state of each socket of its network on that port (proc(5), net/tcp)."""
    lines: list[str] = []
    for table in _TABLES:
        path = Path(f"/proc/{pid}/net/{table}")
        if path.exists():  # without IPv6 there is no tcp6
            lines += path.read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return [(row[9], row[3]) for row in rows if int(row[1].rpartition(":")[2], 16) == port]


def _shut(pidfd: int, fd: int) -> None:
    copied = _libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
    if copied < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    # One that is not connected any more cannot be shut down, and need not.
    with socket.socket(fileno=copied) as one, contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
