# SPDX-License-Identifier: GPL-2.0-only
"""The VM's end of its wires: taps.

As `netdev`: synchronous, idempotent, in the calling thread's namespace, AttachError on failure.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from colo_ebpf.datapath.net import netdev, rps
from colo_ebpf.errors import AttachError

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFF_MULTI_QUEUE = 0x0100
_TAKEN = "another process has it open: end it, or give this VM a tap of its own"


def in_use(ifname: str) -> bool:
    """Of a tap: it is there, and somebody, a VM, has it open."""
    if not netdev.exists(ifname):
        return False
    return bool(netdev.link_of(ifname).get_attr("IFLA_CARRIER"))


def open_tap(ifname: str) -> int:
    """The VM's end of a one-queue tap, made if there is none; AttachError if it is open already."""
    return _open_queue(ifname, several=False)


def open_queues(ifname: str, count: int) -> list[int]:
    """The VM's ends of a tap with so many queues, made if there is none; AttachError if it is open
    already: of one with several the kernel would give away more, to anybody."""
    if count == 1:
        return [open_tap(ifname)]
    if in_use(ifname):
        raise AttachError(f"tap {ifname}: open: {_TAKEN}")
    fds: list[int] = []
    try:
        while len(fds) < count:
            fds.append(_open_queue(ifname, several=True))
    except AttachError:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def _open_queue(ifname: str, *, several: bool) -> int:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if several else 0)
    request = struct.pack("16sH", ifname.encode(), flags)
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    except OSError as e:
        raise AttachError(f"/dev/net/tun: {e.strerror}; load the tun module") from e
    try:
        fcntl.ioctl(fd, _TUNSETIFF, request.ljust(40, b"\0"))
    except OSError as e:
        os.close(fd)
        remedy = _tap_remedy(ifname, e, several=several)
        raise AttachError(f"tap {ifname}: open: {e.strerror}; {remedy}") from e
    return fd


def _tap_remedy(ifname: str, error: OSError, *, several: bool) -> str:
    """What to do about a tap that cannot be opened."""
    if error.errno == errno.EBUSY:
        return _TAKEN
    if error.errno != errno.EINVAL or not netdev.exists(ifname):
        return "that takes CAP_NET_ADMIN"
    return _why_not(ifname, several=several)


def can_open(ifname: str, queues: int) -> bool:
    """A VM with so many queues can open this tap, or has it open."""
    return _kind(ifname)[1] is (queues > 1) or in_use(ifname)


def _kind(ifname: str) -> tuple[str, bool]:
    """What a device is, and whether it is a tap with several queues."""
    with netdev.netlink(f"device {ifname}") as ipr:
        (link,) = ipr.get_links(netdev.index_of(ifname))
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else "hardware"
    data = info.get_attr("IFLA_INFO_DATA") if kind == "tun" else None
    return str(kind), data is not None and bool(data.get_attr("IFLA_TUN_MULTI_QUEUE"))


def _why_not(ifname: str, *, several: bool) -> str:
    """Why a VM with one queue, or with several, cannot open it, and what to do."""
    kind, made_with_several = _kind(ifname)
    if kind != "tun" or made_with_several is several:
        what = f"there is a device of that name that is no tap ({kind})"
        return f"{what}: name another one in vm.nic.tap"
    remove = f"ip tuntap del dev {ifname} mode tap"
    if several:
        made = "it was made without multi_queue, and vm.nic.queues is more than 1"
    else:
        made = "it was made with multi_queue, and vm.nic.queues is 1"
        remove += " multi_queue"
    return f"{made}: remove it ({remove}); the daemon makes its own"


def create_tap(ifname: str, mtu: int, queues: int = 1) -> None:
    """Make a persistent tap, and bring it up. AttachError if it is there for one queue and several
    are wanted, or the other way round: the VM could not open it."""
    if netdev.exists(ifname):
        if not can_open(ifname, queues):
            raise AttachError(f"tap {ifname}: {_why_not(ifname, several=queues > 1)}")
    else:
        fd = _open_queue(ifname, several=queues > 1)
        try:
            fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        except OSError as e:
            raise AttachError(f"tap {ifname}: keep: {e.strerror}") from e
        finally:
            os.close(fd)
    netdev.disable_ipv6(ifname)
    netdev.set_up(ifname, mtu)
    rps.steer(ifname, ())  # it would run the programs later, in another epoch than the frame's
