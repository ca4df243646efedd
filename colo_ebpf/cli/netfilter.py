# SPDX-License-Identifier: GPL-2.0-only
"""Does the host's packet filter see what passes its bridges, and would it stop a VM's clients?

Docker and others turn `bridge-nf-call-iptables` on. Then a filter that drops by default keeps
clients from the VM; one that goes by connection state does so after a takeover, for the other host
has seen none of the connections.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colo_ebpf.errors import AttachError

_SWITCHES = {"ip": "bridge-nf-call-iptables", "ip6": "bridge-nf-call-ip6tables"}
_STATE = ('"ct"', '"conntrack"')  # in a rule


def look(directory: Path = Path("/proc/sys/net/bridge")) -> str:
    """AttachError if clients' frames meet a filter that stops them."""
    families = {family for family, name in _SWITCHES.items() if _is_on(directory / name)}
    if not families:
        return "frames that pass a bridge meet no packet filter"
    names = " and ".join(sorted(_SWITCHES[family] for family in families))
    rules = _rules()
    if rules is None:
        return f"{names}: on; whether that stops clients cannot be seen: install nftables"
    found = list(stops(rules, families))
    if found:
        off = " ".join(f"net.bridge.{_SWITCHES[family]}=0" for family in sorted(families))
        raise AttachError(
            f"{names}: on, and {', '.join(found)}: clients may not reach the VM, or"
            f" lose their connections at a takeover; sysctl {off}"
        )
    return f"{names}: on, and nothing there stops a client"


def _is_on(switch: Path) -> bool:
    try:
        return switch.read_text().strip() != "0"
    except OSError:  # no br_netfilter
        return False


def _rules() -> list[dict[str, Any]] | None:
    """All of nftables, iptables' own among them; None: it cannot be asked."""
    argv = ["nft", "-j", "list", "ruleset"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return list(json.loads(done.stdout)["nftables"])
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError):
        return None


def stops(rules: list[dict[str, Any]], families: set[str]) -> Iterator[str]:
    """What of a rule set stops forwarded frames by default, or goes by connection state."""
    wanted = families | {"inet"}
    for chain in (one["chain"] for one in rules if "chain" in one):
        if chain.get("hook") != "forward" or chain["family"] not in wanted:
            continue
        table = (chain["family"], chain["table"])
        if chain.get("policy") == "drop":
            yield f"{' '.join(table)} {chain['name']} drops by default"
        elif any(_by_state(rule) for rule in rules if _in_table(rule, table)):
            yield f"{' '.join(table)} goes by connection state"


def _in_table(one: dict[str, Any], table: tuple[str, str]) -> bool:
    rule = one.get("rule", {})
    return (rule.get("family"), rule.get("table")) == table


def _by_state(one: dict[str, Any]) -> bool:
    text = json.dumps(one["rule"].get("expr", []))
    return any(word in text for word in _STATE)
