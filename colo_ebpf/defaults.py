# SPDX-License-Identifier: GPL-2.0-only
"""What of a VM the configuration need not say: directories, link device, ports, from its name.

The name is the same on both hosts, so both come to the same. Two VMs of a host rarely come to the
same place; if they do, the second one's daemon says so and does not start.
"""

from __future__ import annotations

import hashlib

PLACES = 4000  # for VMs on a pair of hosts
_FIRST, _SECOND, _THIRD = 20_000, 24_000, 28_000  # of the ports; the kernel's begin at 32,768


def _digest(vm: str) -> bytes:
    return hashlib.blake2b(vm.encode(), digest_size=8).digest()


def place(vm: str) -> int:
    """Of this VM among all that there may be."""
    return int.from_bytes(_digest(vm)) % PLACES


def run_dir(vm: str) -> str:
    """Sockets, logs, what need not outlive the host."""
    return f"/run/colo-ebpf/{vm}"


def state_dir(vm: str) -> str:
    """What has to outlive the host."""
    return f"/var/lib/colo-ebpf/{vm}"


def device(vm: str) -> str:
    """The name of its link device."""
    return f"colo-{_digest(vm)[:4].hex()}"


def vxlan_port(vm: str) -> int:
    """UDP, on the link."""
    return _FIRST + place(vm)


def heartbeat_port(vm: str) -> int:
    """UDP, on the link and on the management path."""
    return _SECOND + place(vm)


def wireguard_port(vm: str) -> int:
    """UDP, on the link."""
    return _THIRD + place(vm)


def nbd_port(vm: str) -> int:
    """TCP, on the link."""
    return _FIRST + place(vm)


def migration_port(vm: str) -> int:
    """TCP, on the link."""
    return _SECOND + place(vm)
