# SPDX-License-Identifier: GPL-2.0-only
"""Names, addresses and files of a lab. Pure.

::

    client ── brlan ─┬─ a0 ══ up0 ── br0 (host a) ── tap of the VM
                     └─ b0 ══ up0 ── br0 (host b) ── tap of the VM
    host a link0 ═════ link0 host b      frames, memory, disk, heartbeats
    host a mgmt0 ═════ mgmt0 host b      heartbeats
    host a arb0 ── brarb ── arb0 host b  the arbiter, where that is etcd (on brarb)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/run/colo-ebpf/lab")
HOSTS = ("a", "b")
UPLINK, LINK, MANAGEMENT, ARBITER = "up0", "link0", "mgmt0", "arb0"
TAP, BRIDGE, LINK_DEVICE = "tap0", "br0", "vxlan0"
GUEST_MTU, LINK_MTU = 1500, 1600
CLIENT_BRIDGE = "brlan"
CLIENT_ADDRESS, DEFAULT_GUEST_ADDRESS, PREFIX_LENGTH = "192.168.77.1", "192.168.77.10", 24
ARBITERS = ("file", "etcd")
ARBITER_BRIDGE, ARBITER_ADDRESS, ARBITER_PORT = "brarb", "10.77.3.10", 2379
MAC = "52:54:00:77:00:10"


@dataclass(frozen=True, slots=True)
class Guest:
    """What to boot. `disk` is copied for each host; empty: an empty image is made.

    `checkpoint_mode`: of the daemons; empty: their default.
    """

    kernel: str
    initrd: str
    append: str
    memory_mib: int
    accel: str
    address: str
    preload: str
    disk: str = ""
    disk_bytes: int = 64 << 20
    checkpoint_mode: str = ""


def directory(lab: str) -> Path:
    """Everything of a lab: a file system in memory of its own."""
    return ROOT / lab


def state_file(lab: str) -> Path:
    """What was asked for."""
    return ROOT / lab / "lab.json"


def up_mark(lab: str) -> Path:
    """Written once the pair was protected: what lacks it was left by a crash."""
    return ROOT / lab / "up"


@dataclass(frozen=True, slots=True)
class Place:
    """One host of a lab."""

    lab: str
    host: str

    @property
    def directory(self) -> Path:
        """Everything of this host."""
        return ROOT / self.lab / self.host

    @property
    def namespace(self) -> str:
        """Its network namespace."""
        return f"{self.lab}-{self.host}"

    @property
    def config(self) -> Path:
        """The daemon's configuration file."""
        return self.directory / "colo-ebpf.toml"

    @property
    def run_dir(self) -> Path:
        """Sockets, logs, pid files."""
        return self.directory / "run"

    @property
    def bpffs(self) -> Path:
        """A BPF file system of its own: two hosts pin maps of one VM on one machine."""
        return self.directory / "bpf"

    @property
    def disk(self) -> Path:
        """The VM's image on this host."""
        return self.directory / "disk.raw"

    @property
    def log(self) -> Path:
        """What the daemon says."""
        return self.directory / "daemon.log"

    @property
    def number(self) -> int:
        """1 for a, 2 for b."""
        return HOSTS.index(self.host) + 1

    @property
    def other(self) -> Place:
        """The other host."""
        return Place(self.lab, HOSTS[2 - self.number])

    @property
    def link_address(self) -> str:
        """On the link."""
        return f"10.77.1.{self.number}"

    @property
    def management_address(self) -> str:
        """On the management network."""
        return f"10.77.2.{self.number}"

    @property
    def arbiter_address(self) -> str:
        """On the arbiter's network."""
        return f"10.77.3.{self.number}"


def client_namespace(lab: str) -> str:
    """Where the client lives."""
    return f"{lab}-client"


def arbiter_namespace(lab: str) -> str:
    """Where etcd lives."""
    return f"{lab}-arbiter"


def arbiter_url() -> str:
    """Where both hosts find etcd."""
    return f"http://{ARBITER_ADDRESS}:{ARBITER_PORT}"


def arbiter_directory(lab: str) -> Path:
    """The record, reachable for both hosts whatever is cut; or what etcd stores."""
    return ROOT / lab / "arbiter"


def key_file(lab: str) -> Path:
    """The heartbeats' key."""
    return ROOT / lab / "key"


def _arbiter_table(lab: str, kind: str) -> dict[str, object]:
    if kind == "etcd":
        return {"kind": kind, "endpoints": [arbiter_url()]}
    return {"kind": kind, "path": str(arbiter_directory(lab))}


def config_text(place: Place, guest: Guest, arbiter: str) -> str:
    """The daemon's configuration on this host."""
    peer = place.other
    append = (
        f"{guest.append} colo.ip={guest.address}/{PREFIX_LENGTH} colo.gw={CLIENT_ADDRESS}"
    ).strip()
    tables: dict[str, dict[str, object]] = {
        "vm": {
            "name": place.lab,
            "kernel": guest.kernel,
            "initrd": guest.initrd,
            "append": append,
            "memory-mib": guest.memory_mib,
            "accel": guest.accel,
            "preload": guest.preload,
        },
        "[vm.nic]": {"mac": MAC, "tap": TAP, "bridge": BRIDGE, "mtu": GUEST_MTU},
        "[vm.disk]": {
            "path": str(place.disk),
            "overlay-dir": str(place.directory / "overlay"),
            "format": "raw",
        },
        "host": {
            "name": place.host,
            "run-dir": str(place.run_dir),
            "state-dir": str(place.directory / "state"),
            "bpffs": str(place.bpffs),
        },
        "peer": {
            "name": peer.host,
            "link-address": peer.link_address,
            "management-address": peer.management_address,
            "key-file": str(key_file(place.lab)),
        },
        "link": {"address": place.link_address, "underlay": LINK, "device": LINK_DEVICE},
        "management": {"address": place.management_address},
        "arbiter": _arbiter_table(place.lab, arbiter),
        "start": {"role": "primary" if place.host == "a" else "secondary"},
        "checkpoint": {"mode": guest.checkpoint_mode} if guest.checkpoint_mode else {},
    }
    lines = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)
