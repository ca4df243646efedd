# SPDX-License-Identifier: GPL-2.0-only
"""Is an address of this host's in use yet? The kernel first asks on the wire whether another host
has a new IPv6 address (duplicate address detection, a second or two); until then nobody can listen
on it. All functions act in the calling thread's network namespace, and block.
"""

from __future__ import annotations

import contextlib
import enum
import ipaddress
import select
import socket
import time
from collections.abc import Iterable
from typing import Any

from pyroute2 import IPRoute

from colo_ebpf import addresses
from colo_ebpf.errors import AttachError

_IFADDR = 1 << 8  # RTMGRP_IPV6_IFADDR
_DADFAILED, _TENTATIVE, _OPTIMISTIC = 0x08, 0x40, 0x04
_READ_BYTES = 1 << 16


class HostAddress(enum.Enum):
    """What is known of an address; the value goes on behind it in a sentence."""

    READY = "can be used"
    ABSENT = "is on no device of this host: give it to one"
    DUPLICATE = "is another host's as well: give them different ones"
    ASKED_FOR = "is being asked for: whether another host has it is known in a second or two"
    UNASKED = "cannot be used yet: its device has no carrier: is the cable in, the other end up?"


def look(address: str) -> HostAddress:
    """As it is now. AttachError if the kernel cannot be asked."""
    wanted = ipaddress.ip_address(address)
    try:
        with IPRoute() as ipr:
            for one in ipr.get_addr(family=addresses.family(address)):
                if _of(one) == wanted:
                    return _state(ipr, one)
    except OSError as e:
        raise AttachError(f"address {address}: look for it: {e.strerror}") from e
    return HostAddress.ABSENT


def _of(one: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS"))


def _state(ipr: Any, one: Any) -> HostAddress:
    flags = int(one["flags"])
    if flags & _DADFAILED:
        return HostAddress.DUPLICATE
    if not flags & _TENTATIVE or flags & _OPTIMISTIC:
        return HostAddress.READY
    carrier = ipr.get_links(one["index"])[0].get_attr("IFLA_CARRIER")
    return HostAddress.ASKED_FOR if carrier else HostAddress.UNASKED


def settle(wanted: Iterable[str], timeout_s: float) -> dict[str, HostAddress]:
    """Wait until of none it is being asked whether another host has it: what is known then.

    One whose device has no carrier is not waited for: there is nobody to ask.
    """
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as told:
        told.bind((0, _IFADDR))
        poller = select.poll()
        poller.register(told, select.POLLIN)
        while True:
            found = {address: look(address) for address in wanted}
            left_s = deadline - time.monotonic()
            if HostAddress.ASKED_FOR not in found.values() or left_s <= 0:
                return found
            if poller.poll(left_s * 1000):
                with contextlib.suppress(OSError):  # more was told than it can keep
                    told.recv(_READ_BYTES)
