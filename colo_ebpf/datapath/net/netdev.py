# SPDX-License-Identifier: GPL-2.0-only
"""Network devices, their addresses and a route, through pyroute2.

All functions are synchronous, idempotent and act in the calling thread's network namespace;
callers inside an event loop use ``asyncio.to_thread``. `namespaces.run_in` runs a function in a
named one. Failures are AttachErrors that name the object.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from colo_ebpf import addresses
from colo_ebpf.errors import AttachError

ETHERNET_BYTES = 14
IFF_UP = 1  # linux/if.h
_IFA_F_NODAD = 0x02
_RTAX_QUICKACK = "quickack"


@contextlib.contextmanager
def netlink(what: str) -> Iterator[Any]:
    """A connection to the kernel; AttachError says what failed in it."""
    try:
        with IPRoute() as ipr:
            yield ipr
    except NetlinkError as e:
        raise AttachError(f"{what}: {e.args[1] if len(e.args) > 1 else e}") from e


def index_of(ifname: str) -> int:
    """Interface index; AttachError if there is no such device."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError as e:
        raise AttachError(f"{ifname}: no such network device; create it first") from e


def names() -> list[str]:
    """Of all devices here."""
    return [name for _, name in socket.if_nameindex()]


def index_if_there(ifname: str) -> int:
    """Interface index, or 0."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError:
        return 0


def exists(ifname: str) -> bool:
    """Is there a device of this name?"""
    return index_if_there(ifname) != 0


def link_of(ifname: str) -> Any:
    """All that the kernel says of a device."""
    with netlink(f"device {ifname}") as ipr:
        return ipr.get_links(index_of(ifname))[0]


def kind_of(link: Any) -> str:
    """`bridge`, `tun`, `vxlan`, ...; "" for what is made by a driver of hardware."""
    info = link.get_attr("IFLA_LINKINFO")
    return str(info.get_attr("IFLA_INFO_KIND") or "") if info else ""


def kind_data(link: Any) -> Any:
    """The attributes of its kind, as of a bridge or of a VXLAN device."""
    return link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")


def set_alias(ifname: str, alias: str) -> None:
    """What `ip link` shows beside its name."""
    with netlink(f"{ifname}: alias") as ipr:
        ipr.link("set", index=index_of(ifname), ifalias=alias)


def is_up(ifname: str) -> bool:
    """Was it brought up? Whether it has a carrier is another matter."""
    return bool(link_of(ifname)["flags"] & IFF_UP)


def master_of(ifname: str) -> int:
    """Index of the bridge it is a port of; 0: of none."""
    return int(link_of(ifname).get_attr("IFLA_MASTER") or 0)


def mtu_of(ifname: str) -> int:
    """MTU in bytes."""
    return int(link_of(ifname).get_attr("IFLA_MTU"))


def set_up(ifname: str, mtu: int | None = None) -> None:
    """Bring a device up, with an MTU if one is given."""
    with netlink(f"{ifname}: set up") as ipr:
        options = {"mtu": mtu} if mtu else {}
        ipr.link("set", index=index_of(ifname), state="up", **options)


def set_down(ifname: str) -> None:
    """Take a device down."""
    with netlink(f"{ifname}: set down") as ipr:
        ipr.link("set", index=index_of(ifname), state="down")


def remove(ifname: str) -> None:
    """Delete a device that may be gone already."""
    if not exists(ifname):
        return
    with netlink(f"{ifname}: delete") as ipr:
        ipr.link("del", index=index_of(ifname))


def disable_ipv6(ifname: str) -> None:
    """The host itself has nothing to say on the VM's wire."""
    path = Path(f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6")
    with contextlib.suppress(OSError):
        path.write_text("1\n")


def add_address(ifname: str, address: str, prefix_length: int) -> None:
    """Give a device an address. One of IPv6 can be used at once: nobody is asked for it."""
    with netlink(f"{ifname}: address {address}/{prefix_length}") as ipr:
        try:
            ipr.addr(
                "add",
                index=index_of(ifname),
                address=address,
                prefixlen=prefix_length,
                flags=_IFA_F_NODAD if addresses.family(address) is socket.AF_INET6 else 0,
            )
        except NetlinkError as e:
            if e.code != errno.EEXIST:
                raise


def keep_addresses_when_down(ifname: str) -> None:
    """A device that is taken down keeps its IPv6 addresses too, as it does those of IPv4."""
    path = Path(f"/proc/sys/net/ipv6/conf/{ifname}/keep_addr_on_down")
    with contextlib.suppress(OSError):
        path.write_text("1\n")


class Offload(enum.IntEnum):
    """What a device does for the stack, by the command that sets it (linux/ethtool.h)."""

    TX_CHECKSUM = 0x17
    TSO = 0x1F
    GRO = 0x2C


def set_offload(ifname: str, offload: Offload, on: bool) -> None:
    """Switch it (ioctl SIOCETHTOOL, struct ethtool_value). Raises AttachError."""
    value = struct.pack("II", offload, on)
    buffer = bytearray(value)
    address = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    pointer = ctypes.addressof(address)
    request = struct.pack("16sQ", ifname.encode(), pointer).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            fcntl.ioctl(s.fileno(), 0x8946, request)
        except OSError as e:
            what = f"switch {offload.name} {'on' if on else 'off'}"
            raise AttachError(f"{ifname}: {what}: {e.strerror}") from e


def set_quickack(peer: str, source: str) -> None:
    """A host route to the peer with `quickack 1`, from our address of the link.

    QEMU's small COLO messages otherwise wait for a delayed ACK, about 40 ms a checkpoint. The peer
    listens to that address alone, and a device may have several.
    """
    family = addresses.family(peer)
    length = 128 if family is socket.AF_INET6 else 32
    with netlink(f"route to {peer}: quickack") as ipr:
        route = ipr.route("get", dst=peer, family=family)[0]
        options: dict[str, Any] = {"dst": f"{peer}/{length}", "oif": route.get_attr("RTA_OIF")}
        options["prefsrc"] = source
        gateway = route.get_attr("RTA_GATEWAY")
        if gateway:
            options["gateway"] = gateway
        elif family is socket.AF_INET:
            options["scope"] = 253  # link
        ipr.route("replace", family=family, metrics={_RTAX_QUICKACK: 1}, **options)
