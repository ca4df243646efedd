# SPDX-License-Identifier: GPL-2.0-only
"""What of a host's packet filter would stop a VM's clients, as nftables lists it."""

from __future__ import annotations

from typing import Any

import pytest

from colo_ebpf.cli.netfilter import stops


def _chain(policy: str, hook: str = "forward", family: str = "ip") -> dict[str, Any]:
    words = {"family": family, "table": "filter", "name": "FORWARD", "hook": hook}
    return {"chain": words | {"type": "filter", "prio": 0, "policy": policy}}


def _rule(*expr: dict[str, Any], family: str = "ip", table: str = "filter") -> dict[str, Any]:
    return {"rule": {"family": family, "table": table, "chain": "x", "expr": list(expr)}}


_CT = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established"]}}
_XT = {"xt": {"type": "match", "name": "conntrack"}}
_PORT = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp"}}, "right": 22}}
BY_STATE = "ip filter goes by connection state"


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ([], []),
        ([_chain("accept")], []),
        ([_chain("accept"), _rule(_PORT)], []),
        ([_chain("drop")], ["ip filter FORWARD drops by default"]),
        ([_chain("accept"), _rule(_PORT, _CT)], [BY_STATE]),
        ([_chain("accept"), _rule(_XT)], [BY_STATE]),
        ([_chain("accept"), _rule(_CT, table="nat")], []),
        ([_chain("drop", hook="input"), _rule(_CT)], []),
        ([_chain("drop", family="ip6")], []),
        ([_chain("drop", family="inet")], ["inet filter FORWARD drops by default"]),
    ],
)
def test_what_stops_a_client(rules: list[dict[str, Any]], told: list[str]) -> None:
    assert list(stops([{"metainfo": {"version": "1"}}, *rules], {"ip"})) == told
