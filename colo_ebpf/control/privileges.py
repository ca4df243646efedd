# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon may do after its programs are loaded, capabilities(7).

A daemon that root starts by hand may do everything; it needs no more than under the systemd unit.
With NoNewPrivileges (the unit sets it) QEMU does not get back what is given up here.
"""

from __future__ import annotations

import ctypes
import enum
import os
import struct

from colo_ebpf.errors import ControlError

_VERSION_3 = 0x20080522


class Capability(enum.IntEnum):
    """Numbers of linux/capability.h."""

    NET_ADMIN = 12
    SYS_NICE = 23
    PERFMON = 38
    BPF = 39


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
