# SPDX-License-Identifier: GPL-2.0-only
"""Who on this host may reach the peer's QEMU, and its plane: rules of routing (ip-rule(8)).

QEMU asks nobody who connects for disk or memory who he is, and the peer's host can tell only hosts
apart. So this host lets nobody else out: a connection to one of those ports finds a route for root
and for QEMU's user, and for others, or for what this host forwards, a refusal. So it is with
frames, which the kernel sends, and the peer's plane takes from whoever has this host's address.

The rules are marked with a protocol of our own (FRA_PROTOCOL). They stay when the daemon ends.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from colo_ebpf import addresses
from colo_ebpf.errors import AttachError

PROTOCOL = 221  # of no routing daemon
_LET_OUT, _REFUSE, _ON = 7701, 7702, 7703  # priorities: before the table `main`
TCP, UDP = 6, 17


def _rules(peer: str, port: int, users: Sequence[int], protocol: int) -> list[dict[str, Any]]:
    to = {
        "family": int(addresses.family(peer)),
        "dst": peer,
        "dst_len": 128 if addresses.family(peer) is socket.AF_INET6 else 32,
        "ip_proto": protocol,
        "dport_range": f"{port}:{port}",
        "protocol": PROTOCOL,
    }
    let_out = [
        to
        | {
            "priority": _LET_OUT,
            "iifname": "lo",  # made here, not forwarded
            "uid_range": f"{user}:{user}",
            "action": "goto",
            "goto": _ON,
        }
        for user in users
    ]
    return [*let_out, to | {"priority": _REFUSE, "action": "prohibit"}]


def _on(peer: str) -> dict[str, Any]:
    family = int(addresses.family(peer))
    return {"family": family, "priority": _ON, "action": "nop", "protocol": PROTOCOL}


def only(users: Sequence[int], peer: str, ports: Sequence[int], protocol: int = TCP) -> None:
    """Nobody else of this host may reach these ports of the peer. What was said of them before is
    taken back afterwards, so that there is no gap. AttachError if the kernel refuses."""
    try:
        with IPRoute() as ipr:
            wanted = [rule for port in ports for rule in _rules(peer, port, users, protocol)]
            before = [one for one in _ours(ipr, peer) if _about(one, peer, ports, protocol)]
            for rule in (_on(peer), *wanted):
                _add(ipr, rule)
            for one in before:
                if not any(_same(one, rule) for rule in wanted):
                    _remove(ipr, one)
    except NetlinkError as e:
        raise AttachError(f"rules for who may connect to {peer}: {e.args[-1]}") from e


def anyone(peer: str, ports: Sequence[int], protocol: int = TCP) -> None:
    """Takes back what `only` said of these ports. AttachError if the kernel refuses."""
    try:
        with IPRoute() as ipr:
            ours = _ours(ipr, peer)
            about = [one for one in ours if _about(one, peer, ports, protocol)]
            left = [one for one in ours if one not in about]
            if all(one.get_attr("FRA_PRIORITY") == _ON for one in left):
                about += left  # no other VM's rule jumps there
            for one in about:
                _remove(ipr, one)
    except NetlinkError as e:
        raise AttachError(f"rules for who may connect to {peer}: {e.args[-1]}") from e


def _add(ipr: Any, rule: dict[str, Any]) -> None:
    try:
        ipr.rule("add", **rule)
    except NetlinkError as e:
        if e.code != 17:  # EEXIST
            raise


def _ours(ipr: Any, peer: str) -> list[Any]:
    family = int(addresses.family(peer))
    return [one for one in ipr.get_rules(family=family) if one.get_attr("FRA_PROTOCOL") == PROTOCOL]


def _about(one: Any, peer: str, ports: Sequence[int], protocol: int) -> bool:
    ranges = {f"{port}:{port}" for port in ports}
    what = (one.get_attr("FRA_DST"), one.get_attr("FRA_IP_PROTO"))
    return what == (peer, protocol) and one.get_attr("FRA_DPORT_RANGE") in ranges


def _same(one: Any, rule: dict[str, Any]) -> bool:
    told = {
        "FRA_PRIORITY": "priority",
        "FRA_DPORT_RANGE": "dport_range",
        "FRA_UID_RANGE": "uid_range",
    }
    return all(one.get_attr(attr) == rule.get(key) for attr, key in told.items())


def _remove(ipr: Any, one: Any) -> None:
    ipr.rule("del", **_described(one))


def _described(one: Any) -> dict[str, Any]:
    found = {
        "family": one["family"],
        "priority": one.get_attr("FRA_PRIORITY"),
        "action": one["action"],
        "dst": one.get_attr("FRA_DST"),
        "dst_len": one["dst_len"],
        "ip_proto": one.get_attr("FRA_IP_PROTO"),
        "dport_range": one.get_attr("FRA_DPORT_RANGE"),
        "iifname": one.get_attr("FRA_IIFNAME"),
        "uid_range": one.get_attr("FRA_UID_RANGE"),
        "goto": one.get_attr("FRA_GOTO"),
        "protocol": PROTOCOL,
    }
    return {name: value for name, value in found.items() if value is not None}
