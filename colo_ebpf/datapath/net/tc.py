# SPDX-License-Identifier: GPL-2.0-only
"""Our filters on clsact hooks: explicit priority, handle and name; nobody else's are touched."""

from __future__ import annotations

import errno

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from colo_ebpf.datapath.net import netdev
from colo_ebpf.datapath.net.hooks import Filter, Hook, Order
from colo_ebpf.errors import AttachError

PRIORITY = 49152
HANDLE = 0xC010
_OURS = {PRIORITY + order for order in Order}
_PARENTS = {Hook.INGRESS: 0xFFFFFFF2, Hook.EGRESS: 0xFFFFFFF3}
_ETH_P_ALL = 3


def attach(one: Filter, fd: int, priority: int | None = None) -> None:
    """Attach a direct-action program, replacing ours if one is there, in one step.

    `priority`: None: ours, by its order.

    Raises AttachError if the kernel refuses.
    """
    index = netdev.index_of(one.device)
    try:
        with IPRoute() as ipr:
            try:
                ipr.tc("add", "clsact", index)
            except NetlinkError as e:
                if e.code != errno.EEXIST:
                    raise
            ipr.tc(
                "replace-filter",
                "bpf",
                index,
                HANDLE,
                fd=fd,
                name=one.program,
                parent=_PARENTS[one.hook],
                prio=PRIORITY + one.order if priority is None else priority,
                protocol=_ETH_P_ALL,
                classid=1,
                direct_action=True,
            )
    except NetlinkError as e:
        raise AttachError(f"{one}: attach {one.program}: {e}") from e


def detach(ifname: str) -> None:
    """Take off every filter of ours, of whichever version.

    Raises AttachError if the kernel refuses.
    """
    index = netdev.index_of(ifname)
    with IPRoute() as ipr:
        for parent in _PARENTS.values():
            try:
                rows = list(ipr.get_filters(index, parent=parent))
                for priority in {row["info"] >> 16 for row in rows} & _OURS:
                    ipr.tc(
                        "del-filter",
                        "bpf",
                        index,
                        HANDLE,
                        parent=parent,
                        prio=priority,
                        protocol=_ETH_P_ALL,
                    )
            except NetlinkError as e:
                raise AttachError(f"{ifname}: detach: {e}") from e


def attached(ifname: str) -> dict[str, list[str]]:
    """Names of our programs by hook (`ingress`, `egress`), in the order they run."""
    found: dict[str, list[str]] = {}
    with IPRoute() as ipr:
        for hook, parent in _PARENTS.items():
            for row in ipr.get_filters(netdev.index_of(ifname), parent=parent):
                options = row.get_attr("TCA_OPTIONS")
                name = options.get_attr("TCA_BPF_NAME") if options else None
                if name and row["info"] >> 16 in _OURS:
                    found.setdefault(hook.value, []).append(str(name))
    return found
