# SPDX-License-Identifier: GPL-2.0-only
"""What a data plane leaves on its host, taken away: for a VM that is protected there no more.

Devices, rules, programs and maps outlive the daemon, for the VM does. Nothing of them is touched
while a VM runs on one of the taps.
"""

from __future__ import annotations

from colo_ebpf.datapath import upgrade
from colo_ebpf.datapath.bpf.loader import pin_directory
from colo_ebpf.datapath.net import callers, ownership, tuntap
from colo_ebpf.datapath.spec import PlaneSpec
from colo_ebpf.errors import AttachError


def require_unused(spec: PlaneSpec) -> None:
    """AttachError if a VM runs on it."""
    used = [nic.tap for nic in spec.nics if tuntap.in_use(nic.tap)]
    if used:
        raise AttachError(
            f"VM {spec.vm} runs here: its QEMU has {used[0]} open. Power the guest off, or let it "
            "serve on the other host and end its daemon and its QEMU here"
        )


def remove(spec: PlaneSpec) -> list[str]:
    """Takes it away; what is not there is no error. Returns what was there, by names and paths.

    Raises AttachError if a VM runs on it, or the kernel refuses.
    """
    require_unused(spec)
    removed = []
    ours = pin_directory(spec.bpffs, spec.vm)
    for path in (ours, *upgrade.others(spec.bpffs, spec.vm)):
        if path.is_dir():
            upgrade.drop(path)
            removed.append(str(path))
    removed += ownership.drop(spec.vm, [nic.tap for nic in spec.nics], spec.link_device)
    if spec.peer_address:
        callers.anyone(spec.peer_address, spec.peer_ports)
        callers.anyone(spec.frames_peer, (spec.vxlan_port,), callers.UDP)
    return removed
