# SPDX-License-Identifier: GPL-2.0-only
"""TCP sockets on which nobody but the peer is heard.

A filter on the socket (socket(7), SO_ATTACH_FILTER) drops the first segment of whoever has another
address: no connection comes about, not even half of one, so QEMU never waits for a stranger. What
is accepted has the same filter, and it cannot be taken off.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct

from colo_ebpf import addresses
from colo_ebpf.errors import VmError

_BACKLOG = 16
_SO_LOCK_FILTER = 44
_NET_OFF = 0xFFF00000  # SKF_NET_OFF: from the beginning of the network header
_LOAD_WORD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
_ALL = 0xFFFFFFFF
_SOURCE = {4: 12, 6: 8}  # where the address is in its header


def only_from(peer: str) -> bytes:
    """Instructions of a filter that lets its packets through."""
    address = ipaddress.ip_address(peer)
    words = [word for (word,) in struct.iter_unpack("!I", address.packed)]
    program = []
    for n, word in enumerate(words):
        left = 2 * (len(words) - n) - 1  # instructions from the comparison to the refusal
        program.append((_LOAD_WORD, 0, 0, _NET_OFF + _SOURCE[address.version] + 4 * n))
        program.append((_IF_EQUAL, 0, left, word))
    program += [(_RETURN, 0, 0, _ALL), (_RETURN, 0, 0, 0)]
    return b"".join(struct.pack("=HBBI", *one) for one in program)


def attach(one: socket.socket, program: bytes) -> None:
    """For good. OSError."""
    buffer = ctypes.create_string_buffer(program, len(program))
    count = len(program) // 8
    where = struct.pack("@HP", count, ctypes.addressof(buffer))
    one.setsockopt(socket.SOL_SOCKET, 26, where)  # SO_ATTACH_FILTER
    one.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)


def listen(address: str, port: int, peer: str, device: str = "") -> socket.socket:
    """`peer` "": everybody is heard. `device`: the only one by which they are; "": any. VmError if
    it cannot be listened there."""
    one = socket.socket(addresses.family(address), socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if peer:
            attach(one, only_from(peer))
        if device:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
        one.bind((address, port))
        one.listen(_BACKLOG)
    except OSError as e:
        one.close()
        raise VmError(f"cannot listen on port {port} of {address}: {e.strerror}") from e
    one.setblocking(False)
    return one
