# SPDX-License-Identifier: GPL-2.0-only
"""Linux bridges: what a VM's tap joins, and why it could not.

As `netdev`: synchronous, idempotent, in the calling thread's namespace, AttachError on failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from colo_ebpf.datapath.net import netdev

_TICKS_S = 100  # USER_HZ, in which a bridge's times are told


def create(ifname: str) -> None:
    """Make a bridge, without STP and its forwarding delay."""
    if not netdev.exists(ifname):
        with netdev.netlink(f"bridge {ifname}: create") as ipr:
            ipr.link("add", ifname=ifname, kind="bridge", br_stp_state=0, br_forward_delay=0)
    netdev.set_up(ifname)


def not_a_bridge(bridge: str) -> str:
    """Why no tap can join it, and what to do; "" if one can."""
    if not netdev.exists(bridge):
        return f"{bridge}: no such network device; create it first"
    kind = netdev.kind_of(netdev.link_of(bridge))
    if kind == "bridge":
        return ""
    return (
        f"{bridge} is no Linux bridge ({kind or 'but a network card or the like'}): a VM's tap can "
        f"join no other; make one, with {bridge} or a port of it as its port"
    )


def vlan_fault(bridge: str, vlan: int, trunk: Sequence[int]) -> str:
    """Why a tap cannot have these VLANs there; "" if it can, or is to have none of its own."""
    if not (vlan or trunk) or new_port_vlan(bridge) is not None:
        return ""
    return (
        f"{bridge} filters no VLANs, and vm.nic.vlan or vm.nic.trunk wants some: "
        f"ip link set {bridge} type bridge vlan_filtering 1, or take those keys out"
    )


def fault(bridge: str, vlan: int = 0) -> str:
    """Why a VM would not be reached there when it takes over, and what to do; "" if it would.

    Its tap joins only then: too late to find out.
    """
    if why := not_a_bridge(bridge):
        return why
    link = netdev.link_of(bridge)
    if not link["flags"] & netdev.IFF_UP:
        return f"{bridge} is down: ip link set {bridge} up"
    silent_s = _new_port_silent_s(link)
    if silent_s:
        return (
            f"{bridge}: spanning tree keeps a new port silent for {silent_s:g} s, and so the VM "
            f"after a takeover: ip link set {bridge} type bridge stp_state 0"
        )
    if not vlan and _new_port_vlan(link) == 0:
        return (
            f"{bridge} filters VLANs and gives a new port none, so nothing would reach the VM: "
            f"ip link set {bridge} type bridge vlan_default_pvid N"
        )
    return ""


def _new_port_silent_s(link: Any) -> float:
    """It listens and learns first; while STP runs nobody can have it forward (EBUSY)."""
    data = netdev.kind_data(link)
    delay_s = float(data.get_attr("IFLA_BR_FORWARD_DELAY")) / _TICKS_S
    return 2 * delay_s if data.get_attr("IFLA_BR_STP_STATE") else 0.0


def new_port_vlan(bridge: str) -> int | None:
    """The VLAN of a port that joins, as of a tap at a takeover; None: the bridge filters none."""
    return _new_port_vlan(netdev.link_of(bridge))


def _new_port_vlan(link: Any) -> int | None:
    data = netdev.kind_data(link)
    if not data.get_attr("IFLA_BR_VLAN_FILTERING"):
        return None
    return int(data.get_attr("IFLA_BR_VLAN_DEFAULT_PVID") or 0)


def join(ifname: str, bridge: str, vlan: int = 0, trunk: Sequence[int] = ()) -> None:
    """Make a device a port of the bridge, with these VLANs beside, or instead of, its default."""
    with netdev.netlink(f"{ifname}: join bridge {bridge}") as ipr:
        ipr.link("set", index=netdev.index_of(ifname), master=netdev.index_of(bridge))
    if not (vlan or trunk):
        return
    with netdev.netlink(f"{ifname}: VLANs on {bridge}") as ipr:
        for command, info in vlan_changes(vlan, trunk, new_port_vlan(bridge) or 0):
            ipr.vlan_filter(command, index=netdev.index_of(ifname), vlan_info=info)


def vlan_changes(vlan: int, trunk: Sequence[int], default: int) -> list[tuple[str, dict[str, Any]]]:
    """What makes a port that has just joined one with these VLANs. Pure."""
    changes: list[tuple[str, dict[str, Any]]] = []
    if vlan:
        changes.append(("add", {"vid": vlan, "flags": ["pvid", "untagged"]}))
        if default not in (0, vlan, *trunk):
            changes.append(("del", {"vid": default}))
    return [*changes, *(("add", {"vid": one}) for one in trunk)]


def leave(ifname: str) -> None:
    """Take a device off its bridge."""
    with netdev.netlink(f"{ifname}: leave its bridge") as ipr:
        ipr.link("set", index=netdev.index_of(ifname), master=0)
