# SPDX-License-Identifier: GPL-2.0-only
"""The kernel tells what is changed: on devices, queues and filters by rtnetlink(7), LINK and TC;
on states and policies of IPsec by its own netlink."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from colo_ebpf.errors import DatapathError

_LINK_AND_TC = 1 << 0 | 1 << 3  # RTMGRP_LINK, RTMGRP_TC
_STATES_AND_POLICIES = 1 << 2 | 1 << 3  # XFRMNLGRP_SA, XFRMNLGRP_POLICY
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_INDEX = struct.Struct("=i")  # in struct ifinfomsg and in struct tcmsg: behind four bytes
_READ_BYTES = 1 << 16


class Changes:
    """Of the network namespace it is made in. `ipsec`: of its states and policies, too."""

    def __init__(self, *, ipsec: bool = False) -> None:
        try:
            self._devices = _listen(socket.NETLINK_ROUTE, _LINK_AND_TC)
            self._ipsec = _listen(socket.NETLINK_XFRM, _STATES_AND_POLICIES) if ipsec else None
        except OSError as e:
            raise DatapathError(f"netlink: hear of changes: {e.strerror}") from e

    @property
    def fds(self) -> list[int]:
        """One of them can be read from when something has changed."""
        return [one.fileno() for one in (self._devices, self._ipsec) if one is not None]

    def concern(self, indices: set[int]) -> bool:
        """Read all that was told. Did any of it concern one of these devices, or IPsec?

        True as well if the kernel has had to leave something out.
        """
        of_devices = [told is None or _concerns(told, indices) for told in _read(self._devices)]
        of_ipsec = [*_read(self._ipsec)] if self._ipsec is not None else []
        return any(of_devices) or bool(of_ipsec)

    def close(self) -> None:
        """Hear no more."""
        self._devices.close()
        if self._ipsec is not None:
            self._ipsec.close()


def _listen(protocol: int, groups: int) -> socket.socket:
    one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        one.bind((0, groups))
    except OSError:
        one.close()
        raise
    return one


def _read(one: socket.socket) -> Iterator[bytes | None]:
    """Everything that was told; None: something was left out."""
    while True:
        try:
            yield one.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS
            yield None


def _concerns(told: bytes, indices: set[int]) -> bool:
    return not indices.isdisjoint(_indices(told))


def _indices(told: bytes) -> Iterator[int]:
    at = 0
    while at + _HEADER.size + 8 <= len(told):
        (size, *_) = _HEADER.unpack_from(told, at)
        yield _INDEX.unpack_from(told, at + _HEADER.size + 4)[0]
        at += max((size + 3) & ~3, _HEADER.size)
