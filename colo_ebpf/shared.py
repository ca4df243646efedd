# SPDX-License-Identifier: GPL-2.0-only
"""What all VMs of a host have in common: `host.toml`, merged under each file of `vms/`. Pure.

The VM's own file says the rest, and wins, key by key. `{vm}` in the shared file is the VM's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "host.toml"
OWN = {"vm": ("name", "nic", "disk", "uuid", "firmware-vars"), "start": ("role",)}
_PLACE = "{vm}"


@dataclass(frozen=True, slots=True)
class Shared:
    """A shared file, read; without tables there is none."""

    file: Path
    raw: Mapping[str, Any] = field(default_factory=dict)


def file_for(file: Path) -> Path | None:
    """The shared file that goes with a VM's; None: that one stands alone."""
    return file.parent.parent / NAME if file.parent.name == "vms" else None


def wrong_key(raw: Mapping[str, Any]) -> str:
    """A key that is each VM's own ("" if there is none)."""
    for table, keys in OWN.items():
        inner = raw.get(table)
        for key in keys:
            if isinstance(inner, dict) and key in inner:
                return f"{table}.{key}"
    return ""


def merged(own: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Both; tables key by key, anything else as the VM's file has it."""
    table = own.get("vm")
    name = table.get("name") if isinstance(table, dict) else None
    under = _named(shared, name) if isinstance(name, str) else dict(shared)
    found = dict(under)
    for key, value in own.items():
        beneath = under.get(key)
        both = isinstance(value, dict) and isinstance(beneath, dict)
        found[key] = {**beneath, **value} if both else value  # type: ignore[dict-item]
    return found


def _named(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value.replace(_PLACE, name)
    if isinstance(value, list):
        return [_named(one, name) for one in value]
    if isinstance(value, dict):
        return {key: _named(one, name) for key, one in value.items()}
    return value


def origin(place: str, own: Mapping[str, Any], file: Path, shared: Shared) -> Path:
    """The file in which a value like `link.address` stands."""
    table, _, rest = place.partition(".")
    key = rest.partition(".")[0].partition("[")[0]
    inner, beneath = own.get(table), shared.raw.get(table)
    if isinstance(inner, dict) and key in inner:
        return file
    return shared.file if isinstance(beneath, dict) and key in beneath else file


EXAMPLE = """\
# What all VMs of this host have in common. A file in vms/ says the rest, and wins.
# {vm} is the name of the VM.

[host]
name = "a"
# run-dir and state-dir are /run/colo-ebpf/{vm} and /var/lib/colo-ebpf/{vm}

[peer]
name = "b"
link-address = "192.0.2.2"
management-address = "198.51.100.2"
key-file = "/etc/colo-ebpf/key"

[link]
address = "192.0.2.1"
underlay = "eth1"

[management]
address = "198.51.100.1"

[arbiter]
kind = "etcd"
endpoints = ["https://192.0.2.11:2379", "https://192.0.2.12:2379", "https://192.0.2.13:2379"]
ca-file = "/etc/colo-ebpf/etcd-ca.pem"
cert-file = "/etc/colo-ebpf/etcd-client.pem"
key-file = "/etc/colo-ebpf/etcd-client.key"

# [fence]
# command = ["/etc/colo-ebpf/fence"]
# when = "before-solo"
"""
