# SPDX-License-Identifier: GPL-2.0-only
"""Network namespaces by name, and what is done inside of one.

Synchronous and idempotent, as `netdev`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from pyroute2 import netns

from colo_ebpf.datapath.net import netdev

T = TypeVar("T")


def run_in(name: str, function: Callable[[], T]) -> T:
    """Run `function` in the named network namespace, in a thread of its own.

    Only the network namespace is entered: `ip netns exec` would remount /sys and hide bpffs.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            netns.setns(name)
            result.append(function())
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=run, name=f"netns-{name}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def names() -> list[str]:
    """Of the network namespaces of this machine."""
    return sorted(netns.listnetns())


def create(name: str) -> None:
    """Make a named network namespace with its loopback up."""
    with contextlib.suppress(FileExistsError):
        netns.create(name)
    run_in(name, lambda: netdev.set_up("lo"))


def remove(name: str) -> None:
    """Remove a named network namespace and every device in it."""
    with contextlib.suppress(FileNotFoundError):
        netns.remove(name)


def create_veth(ifname: str, peer: str, namespace: str, peer_namespace: str, mtu: int) -> None:
    """A veth pair with one end in each named namespace, both up."""

    def make() -> None:
        with netdev.netlink(f"veth {ifname}: create") as ipr:
            ipr.link(
                "add",
                ifname=ifname,
                kind="veth",
                mtu=mtu,
                peer={"ifname": peer, "net_ns_fd": peer_namespace, "mtu": mtu},
            )

    run_in(namespace, make)
    run_in(namespace, lambda: netdev.set_up(ifname, mtu))
    run_in(peer_namespace, lambda: netdev.set_up(peer, mtu))
