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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path("/run/colo-ebpf/lab")
HOSTS = ("a", "b")
UPLINK, LINK, MANAGEMENT, ARBITER = "up0", "link0", "mgmt0", "arb0"
TAP, BRIDGE, LINK_DEVICE = "tap0", "br0", "vxlan0"
GUEST_MTU, LINK_MTU = 1500, 1660
CLIENT_BRIDGE = "brlan"
CLIENT_ADDRESS, DEFAULT_GUEST_ADDRESS, PREFIX_LENGTH = "192.168.77.1", "192.168.77.10", 24
ARBITERS = ("file", "etcd")
FAMILIES = ("ipv4", "ipv6")  # of the addresses on the two paths between the hosts
SECURITY = ("auto", "ipsec", "wireguard", "none")  # of the link
ARBITER_BRIDGE, ARBITER_ADDRESS, ARBITER_PORT = "brarb", "10.77.3.10", 2379
MAC = "52:54:00:77:00:10"
FIRST_USER = 70_000  # of QEMUs: one of its own for each VM on each host, in no list of users


@dataclass(frozen=True, slots=True)
class Guest:
    """What to boot. `disk` is copied, for each host; empty: an empty image is made.

    `luns`: one disk, by its name on each host, instead of an image; the hosts reserve it.
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
    shared_disk: bool = False  # both hosts have one and the same
    luns: tuple[str, ...] = ()  # of `HOSTS`
    checkpoint_mode: str = ""


def directory(lab: str) -> Path:
    """Everything of a lab: a file system in memory of its own."""
    return ROOT / lab


def vm_name(lab: str, vm: int) -> str:
    """The first VM has the lab's name."""
    return f"{lab}-{vm}" if vm else lab


def state_file(lab: str, vm: int = 0) -> Path:
    """What was asked for."""
    return ROOT / lab / f"{vm_name('lab', vm)}.json"


def up_mark(lab: str) -> Path:
    """Written once the pair was protected: what lacks it was left by a crash."""
    return ROOT / lab / "up"


@dataclass(frozen=True, slots=True)
class Place:
    """One VM on one host of a lab."""

    lab: str
    host: str
    vm: int = 0
    family: str = FAMILIES[0]

    @property
    def name(self) -> str:
        """Of the VM."""
        return vm_name(self.lab, self.vm)

    @property
    def directory(self) -> Path:
        """Everything of the VM on this host."""
        return ROOT / self.lab / vm_name(self.host, self.vm)

    @property
    def tap(self) -> str:
        """Of the VM."""
        return f"tap{self.vm}"

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
        """The host's own: two hosts pin maps of one VM on one machine."""
        return ROOT / self.lab / self.host / "bpf"

    @property
    def disk(self) -> Path:
        """The VM's image on this host."""
        return self.directory / "disk.raw"

    @property
    def shared_disk(self) -> Path:
        """What `disk` of both hosts leads to, if they have one."""
        return ROOT / self.lab / f"{vm_name('shared', self.vm)}.raw"

    @property
    def fence(self) -> Path:
        """The command that turns the other host off."""
        return self.directory / "fence"

    @property
    def user(self) -> int:
        """Who the VM's QEMU is on this host."""
        return FIRST_USER + len(HOSTS) * self.vm + self.number

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
        return replace(self, host=HOSTS[2 - self.number])

    @property
    def link_address(self) -> str:
        """On the link."""
        return self._address(1)

    @property
    def management_address(self) -> str:
        """On the management network."""
        return self._address(2)

    def _address(self, path: int) -> str:
        number = self.number
        return f"fd77::{path}:{number}" if self.family == "ipv6" else f"10.77.{path}.{number}"

    @property
    def prefix_length(self) -> int:
        """Of the two paths."""
        return 112 if self.family == "ipv6" else PREFIX_LENGTH

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


def arbiter_directory(lab: str, vm: int = 0) -> Path:
    """The record, reachable for both hosts whatever is cut; or what etcd stores."""
    return ROOT / lab / vm_name("arbiter", vm)


def key_file(lab: str) -> Path:
    """The heartbeats' key."""
    return ROOT / lab / "key"


def _arbiter_table(place: Place, kind: str) -> dict[str, object]:
    if kind == "etcd":
        return {"kind": kind, "endpoints": [arbiter_url()]}
    return {"kind": kind, "path": str(arbiter_directory(place.lab, place.vm))}


def _link_table(place: Place, security: str) -> dict[str, object]:
    """Only the first VM has a link device of a name that people can guess; else the defaults."""
    device = {} if place.vm else {"device": LINK_DEVICE}
    here = {"address": place.link_address, "underlay": LINK, "security": security}
    return {**here, **device}


def _fence_table(place: Place, guest: Guest) -> dict[str, object]:
    """Who goes on alone with a shared disk turns the other host off first, or reserves the disk."""
    if not guest.shared_disk:
        return {}
    if guest.luns:
        return {"reservation": True}
    return {"command": [str(place.fence)], "when": "before-solo"}


def fence_script(place: Place) -> str:
    """Ends all that runs on the other host, and notes why."""
    return f"""#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
while pids=$(ip netns pids {place.other.namespace}) && [ -n "$pids" ]; do
    kill -9 $pids
    sleep 0.05
done
echo "$COLO_REASON" >> "$0.calls"
"""


def mac(vm: int) -> str:
    """Of a VM of the lab."""
    return f"{MAC[:-2]}{int(MAC[-2:], 16) + vm:02x}"


def first_host(vm: int) -> str:
    """Where it runs first: the VMs of a lab run on either host."""
    return HOSTS[vm % len(HOSTS)]


def config_text(
    place: Place, guest: Guest, arbiter: str, security: str, timing: Mapping[str, int]
) -> str:
    """The daemon's configuration on this host. `security`: of the link; `timing`: what differs from
    the defaults."""
    peer = place.other
    append = (
        f"{guest.append} colo.ip={guest.address}/{PREFIX_LENGTH} colo.gw={CLIENT_ADDRESS}".strip()
        if guest.kernel
        else ""  # its disk has a boot loader with words of its own
    )
    tables: dict[str, dict[str, object]] = {
        "vm": {
            "name": place.name,
            "kernel": guest.kernel,
            "initrd": guest.initrd,
            "append": append,
            "memory-mib": guest.memory_mib,
            "accel": guest.accel,
            "preload": guest.preload,
            "user": str(place.user),
        },
        "[vm.nic]": {"mac": mac(place.vm), "tap": place.tap, "bridge": BRIDGE, "mtu": GUEST_MTU},
        "[vm.disk]": {
            "path": str(place.disk),
            "overlay-dir": str(place.directory / "overlay"),
            "format": "raw",
            **({"x-shared": True} if guest.shared_disk else {}),
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
        "link": _link_table(place, security),
        "management": {"address": place.management_address},
        "arbiter": _arbiter_table(place, arbiter),
        "start": {"role": "primary" if place.host == first_host(place.vm) else "secondary"},
        "fence": _fence_table(place, guest),
        "timing": dict(timing),
        "checkpoint": {"mode": guest.checkpoint_mode} if guest.checkpoint_mode else {},
    }
    lines = []
    for table, values in tables.items():
        if not values:
            continue
        lines.append(f"[{table}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)
