# SPDX-License-Identifier: GPL-2.0-only
"""Data planes of other versions that an earlier daemon left pinned and attached.

The layout's version is in the pins' path, so two versions would not find each other's maps, and the
newer one would put its programs in the place of the older one's, with empty maps: connections that
outlived a takeover would lose their sequence numbers, frames that are held would be forgotten. So a
data plane of another version with a VM on it is left alone; without a VM it is cleared away.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.loader import pin_directory
from colo_ebpf.datapath.net import netdev, tc, tcx, tuntap
from colo_ebpf.errors import LoadError

_log = logging.getLogger(__name__)


def others(bpffs: Path, vm: str) -> list[Path]:
    """Pins of this VM that are of another version."""
    ours = pin_directory(bpffs, vm)
    found = ours.parent.parent.glob(f"v*/{ours.name}")
    return sorted(path for path in found if path != ours and path.is_dir())


def drop(pins: Path) -> None:
    """Programs, links and maps that are pinned there, of whichever version: nothing holds them."""
    tcx.detach(pins)
    shutil.rmtree(pins)


def make_way(bpffs: Path, vm: str, taps: Sequence[str], link_device: str) -> None:
    """Before anything is loaded: LoadError, with nothing touched, if a VM runs on such a plane."""
    old = others(bpffs, vm)
    if not old:
        return
    used = [tap for tap in taps if tuntap.in_use(tap)]
    if used:
        raise LoadError(_refusal(old[-1], used[0]))
    for device in taps:
        if netdev.exists(device):
            tc.detach(device)
    netdev.remove(link_device)  # it may lack what this version wants of it
    for path in old:
        drop(path)
        _log.info("%s: no VM runs on it: removed", path)


def _refusal(old: Path, tap: str) -> str:
    theirs = old.parent.name.removeprefix("v")
    return (
        f"{old}: a VM runs on {tap} with a data plane of version {theirs}, this daemon is of "
        f"version {abi.ABI_VERSION}: nothing was changed, the VM goes on without a daemon. Start "
        f"the daemon of version {theirs} again. To upgrade, let the other host serve first "
        "(`colo-ebpf switchover`), end the replica here, then start this version "
        "(docs/operate/upgrade.md, Upgrading)"
    )
