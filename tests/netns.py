# SPDX-License-Identifier: GPL-2.0-only
"""Network namespaces and the wires in them, for one thread; what tools are too old for."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct

_CLONE_NEWNET = 0x40000000
_RTM_NEWLINK, _NLM_F_REQUEST, _NLM_F_ACK = 16, 1, 4
_IFLA_GSO_MAX_SIZE, _IFLA_GSO_IPV4_MAX_SIZE = 41, 63


def enter(fd: int) -> None:
    """The namespace behind `fd`, which is closed."""
    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(fd)


def readable(wire: socket.socket | int, timeout_s: float = 0) -> bool:
    """Is there something to read, or will there be in time? Any descriptor, unlike select(2)."""
    poll = select.poll()
    poll.register(wire, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def let_be_sent_whole(ifname: str, most_bytes: int) -> None:
    """Frames of so many bytes leave a device uncut, over IPv4 as well (BIG TCP, Linux 6.3).

    Neither iproute2 6.1 nor pyroute2 knows the IPv4 attribute.
    """
    body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(ifname), 0, 0)
    for attribute in (_IFLA_GSO_MAX_SIZE, _IFLA_GSO_IPV4_MAX_SIZE):
        body += struct.pack("=HHI", 8, attribute, most_bytes)
    flags = _NLM_F_REQUEST | _NLM_F_ACK
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        s.send(struct.pack("=IHHII", 16 + len(body), _RTM_NEWLINK, flags, 1, 0) + body)
        (error,) = struct.unpack_from("=i", s.recv(4096), 16)
    if error:
        raise OSError(-error, f"{ifname}: gso_max_size {most_bytes}")
