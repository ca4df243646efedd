# SPDX-License-Identifier: GPL-2.0-only
"""Whose a network device is. What we make has its VM's name in its alias (`ip link` shows it).

A device that is there already is taken if it is this VM's; or if it has no mark and can only be one
of ours, made by a version that set none. Nothing else is touched: a network card named where the
tunnel's name belongs would be lost to its host, and two VMs with one tunnel would take each other
off the net.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from colo_ebpf.datapath.net import delay_line, netdev, tuntap, vxlan
from colo_ebpf.errors import AttachError

_MARK = "colo-ebpf: "
IsOne = Callable[[Any], bool]


def owner(ifname: str) -> str:
    """The VM whose device it is; "": nobody's that we know of."""
    alias = str(netdev.link_of(ifname).get_attr("IFLA_IFALIAS") or "")
    return alias.removeprefix(_MARK) if alias.startswith(_MARK) else ""


def mark(ifname: str, vm: str) -> None:
    """It is this VM's from now on."""
    netdev.set_alias(ifname, f"{_MARK}{vm}")


def require(vm: str, taps: Sequence[str], link_device: str, port: int) -> None:
    """AttachError if one of a data plane's devices is there and not this VM's."""
    for ifname, key, what, is_one in _devices(taps, link_device, port):
        if not netdev.exists(ifname):
            continue
        theirs = owner(ifname)
        if theirs and theirs != vm:
            raise AttachError(
                f"{ifname} belongs to VM {theirs}: give VM {vm} another {key}, or, if {theirs} is "
                f"no longer protected here, ip link del {ifname}"
            )
        link = netdev.link_of(ifname)
        if not theirs and not is_one(link):
            kind = netdev.kind_of(link) or "a network card or the like"
            raise AttachError(
                f"{ifname} is there and is no {what} of ours ({kind}): {key} names a device that "
                f"the daemon makes, give it a name that is free"
            )


def drop_outdated(vm: str, taps: Mapping[str, int], link_device: str, port: int) -> None:
    """What the configuration wants otherwise now is made anew: the VM's tunnel with another port,
    and a tap that has not the queues it says, unless the VM has it open."""
    if _is_of(vm, link_device) and not vxlan.is_tunnel(netdev.link_of(link_device), port):
        netdev.remove(link_device)
    for tap, queues in taps.items():
        if _is_of(vm, tap) and not tuntap.can_open(tap, queues):
            netdev.remove(tap)


def drop(vm: str, taps: Sequence[str], link_device: str) -> list[str]:
    """All of the VM's devices. Returns the names of those that were there."""
    there = [one for one in (*taps, link_device, *delay_line.names(link_device)) if _is_of(vm, one)]
    for ifname in there:
        netdev.remove(ifname)
    return there


def _is_of(vm: str, ifname: str) -> bool:
    return netdev.exists(ifname) and owner(ifname) == vm


def _devices(
    taps: Sequence[str], link_device: str, port: int
) -> Iterator[tuple[str, str, str, IsOne]]:
    """Name, key of the configuration, what it should be, and whether one without a mark is that."""
    for tap in taps:
        yield tap, "vm.nic.tap", "tap", _is_tap
    yield link_device, "link.device", "tunnel", lambda link: vxlan.is_tunnel(link, port)
    for end in delay_line.names(link_device):
        yield end, "link.device", "delay line", _is_veth


def _is_tap(link: Any) -> bool:
    return netdev.kind_of(link) == "tun"


def _is_veth(link: Any) -> bool:
    return netdev.kind_of(link) == "veth"
