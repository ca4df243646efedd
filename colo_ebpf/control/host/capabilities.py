# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon may do after its programs are loaded, capabilities(7).

A daemon that root starts by hand may do everything; it needs no more than under the systemd unit.
With NoNewPrivileges (the unit sets it) QEMU does not get back what is given up here.

QEMU is a user of its own (`User`): whoever breaks out of it is that user, without capabilities.
"""

from __future__ import annotations

import ctypes
import enum
import grp
import os
import pwd
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from colo_ebpf.errors import ConfigError, ControlError

_VERSION_3 = 0x20080522
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_DUMPABLE = 4
_KVM = Path("/dev/kvm")
_T = TypeVar("_T")


class Capability(enum.IntEnum):
    """Numbers of linux/capability.h."""

    KILL = 5  # QEMU is another user, and has to be ended whatever else fails
    NET_ADMIN = 12
    SYS_NICE = 23
    PERFMON = 38
    BPF = 39


@dataclass(frozen=True, slots=True)
class User:
    """Who a QEMU is."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def user_of(name: str) -> User | None:
    """`name`: of a user, or a number; None: root. ConfigError if there is no such user."""
    if name in ("root", "0"):
        return None
    if name.isdecimal():
        uid = gid = int(name)
        groups: list[int] = []
    else:
        try:
            entry = pwd.getpwnam(name)
        except KeyError as e:
            raise ConfigError(
                f"vm.user: there is no user {name}: adduser --system --group --no-create-home "
                f'{name}, or set [vm] user to another one ("root" leaves QEMU unconfined)'
            ) from e
        uid, gid = entry.pw_uid, entry.pw_gid
        groups = [one.gr_gid for one in grp.getgrall() if name in one.gr_mem]
    if _KVM.exists():
        groups.append(_KVM.stat().st_gid)
    return User(uid, gid, tuple(sorted({g for g in groups if g} - {gid})))


def become(user: User) -> None:
    """For good, of the calling process: no capability is left, none can come back, and no other
    process of that user reads its memory. OSError if that takes more than it may do."""
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def keep_only_needed() -> None:
    """Give up every other capability of the calling thread; ControlError if that fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    if libc.capget(header, data):
        raise ControlError(f"capabilities: read: {os.strerror(ctypes.get_errno())}")
    needed = sum(1 << one for one in Capability)
    masks = (needed & 0xFFFFFFFF, needed >> 32)
    words = struct.unpack("=6I", data.raw)  # effective, permitted, inheritable; twice
    kept = [word & masks[i // 3] for i, word in enumerate(words)]
    if libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", *kept), 24)):
        raise ControlError(f"capabilities: give up: {os.strerror(ctypes.get_errno())}")


def as_daemon(check: Callable[[], _T]) -> _T:
    """What `check` returns or raises with the rights that the daemon and its QEMU have.

    Its caller keeps its own: both are a thread's, and this one ends. ControlError if they cannot be
    given up.
    """

    def confined() -> _T:
        keep_only_needed()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise ControlError(f"no new privileges: {os.strerror(ctypes.get_errno())}")
        return check()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(confined).result()
