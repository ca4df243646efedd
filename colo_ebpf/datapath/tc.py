# SPDX-License-Identifier: GPL-2.0-only
"""Our filters on clsact hooks: explicit priority, handle and name; nobody else's are touched."""

from __future__ import annotations

import errno

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from colo_ebpf.datapath import netdev
from colo_ebpf.errors import AttachError

INGRESS = 0xFFFFFFF2
EGRESS = 0xFFFFFFF3
PRIORITY = 49152
BEFORE, AFTER = PRIORITY - 1, PRIORITY + 1
HANDLE = 0xC010
_ETH_P_ALL = 3


def attach(ifname: str, parent: int, program: str, fd: int, priority: int = PRIORITY) -> None:
    """Attach a direct-action program, replacing ours if one is there, in one step."""
    index = netdev.index_of(ifname)
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
                name=program,
                parent=parent,
                prio=priority,
                protocol=_ETH_P_ALL,
                classid=1,
                direct_action=True,
            )
    except NetlinkError as e:
        hook = "ingress" if parent == INGRESS else "egress"
        raise AttachError(f"{ifname} {hook}: attach {program}: {e}") from e


def detach(ifname: str) -> None:
    """Take off every filter of ours, of whichever version."""
    index = netdev.index_of(ifname)
    with IPRoute() as ipr:
        for parent in (INGRESS, EGRESS):
            try:
                rows = list(ipr.get_filters(index, parent=parent))
                for priority in {row["info"] >> 16 for row in rows} & {BEFORE, PRIORITY, AFTER}:
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
        for hook, parent in (("ingress", INGRESS), ("egress", EGRESS)):
            for row in ipr.get_filters(netdev.index_of(ifname), parent=parent):
                options = row.get_attr("TCA_OPTIONS")
                name = options.get_attr("TCA_BPF_NAME") if options else None
                if name and BEFORE <= row["info"] >> 16 <= AFTER:
                    found.setdefault(hook, []).append(str(name))
    return found
