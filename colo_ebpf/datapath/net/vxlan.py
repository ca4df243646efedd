# SPDX-License-Identifier: GPL-2.0-only
"""The link device between the hosts: a VXLAN tunnel.

As `netdev`: synchronous, idempotent, in the calling thread's namespace, AttachError on failure.
"""

from __future__ import annotations

import errno
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from colo_ebpf.datapath.net import netdev
from colo_ebpf.errors import AttachError


def check_link_mtu(underlay: str, guest_mtu: int, need: int) -> None:
    """What the tunnel and the seal add has to fit; a smaller link would lose frames.

    Raises AttachError for such a link.
    """
    mtu = netdev.mtu_of(underlay)
    if mtu < need:
        raise AttachError(
            f"link {underlay}: its MTU of {mtu} is too small for the guest's {guest_mtu}-byte "
            f"packets plus {need - guest_mtu} bytes of tunnel; set it to {need} or more "
            f"on both hosts"
        )


def create(ifname: str, port: int, mtu: int) -> None:
    """The link device: VXLAN in external (collect-metadata) mode with group policy (GBP), which
    takes frames without an outer checksum over IPv6 as well.

    Raises AttachError if the UDP port is taken.
    """
    fresh = not netdev.exists(ifname)
    if fresh:
        _add_vxlan(ifname, f"on port {port}", port, vxlan_collect_metadata=True)
    netdev.disable_ipv6(ifname)
    try:
        netdev.set_up(ifname, mtu)
    except AttachError as e:
        if not isinstance(e.__cause__, NetlinkError) or e.__cause__.code != errno.EADDRINUSE:
            raise
        if fresh:
            netdev.remove(ifname)
        raise AttachError(
            f"VXLAN {ifname}: UDP port {port} is in use by {_who_has(port, ifname)}: set "
            f"link.vxlan-port to a free one, alike on both hosts"
        ) from e
    # The SVM's segments are compared as they came.
    netdev.set_offload(ifname, netdev.Offload.GRO, False)


def _who_has(port: int, but: str) -> str:
    """The tunnel that is up on this UDP port, beside one."""
    with netdev.netlink("devices") as ipr:
        for link in ipr.get_links():
            name = str(link.get_attr("IFLA_IFNAME"))
            if netdev.kind_of(link) == "vxlan" and tunnel_port(link) == port and name != but:
                return f"the VXLAN device {name}"
    return f"another program (ss -ulpn sport = :{port})"


def is_tunnel(link: Any, port: int) -> bool:
    """Is it what `create` makes?"""
    if netdev.kind_of(link) != "vxlan":
        return False
    data = netdev.kind_data(link)
    flags = [attribute[0] for attribute in data["attrs"]]  # one that is not set is not there
    external = bool(data.get_attr("IFLA_VXLAN_COLLECT_METADATA"))
    return external and "IFLA_VXLAN_GBP" in flags and tunnel_port(link) == port


def tunnel_port(link: Any) -> int:
    """The UDP port of a VXLAN device."""
    return int(netdev.kind_data(link).get_attr("IFLA_VXLAN_PORT"))


def create_to(ifname: str, vni: int, remote: str, port: int, mtu: int) -> None:
    """A tunnel to one host, as a peer's looks from there: a frame's mark becomes its group."""
    to = {"vxlan_id": vni, "vxlan_group": remote, "vxlan_udp_csum": False}
    _add_vxlan(ifname, f"to {remote}", port, **to)
    netdev.set_up(ifname, mtu)


def _add_vxlan(ifname: str, where: str, port: int, **more: Any) -> None:
    with netdev.netlink(f"VXLAN {ifname}: create {where}") as ipr:
        ipr.link(
            "add",
            ifname=ifname,
            kind="vxlan",
            vxlan_gbp=True,
            vxlan_port=port,
            vxlan_learning=False,
            vxlan_udp_zero_csum6_rx=True,
            **more,
        )
