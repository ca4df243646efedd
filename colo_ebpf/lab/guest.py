# SPDX-License-Identifier: GPL-2.0-only
"""Which guest a lab boots: one of the two that are built here, or anyone's own."""

from __future__ import annotations

import shutil
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from colo_ebpf.errors import LabError
from colo_ebpf.lab.topology import DEFAULT_GUEST_ADDRESS, Guest

BUILT = Path(__file__).resolve().parents[2] / "build" / "guest"
# A guest that TCG starves, as on a busy machine, takes its timer for broken and may never boot.
APPEND = "console=ttyS0 quiet no_timer_check mitigations=off random.trust_cpu=on"
_MEMORY_MIB, _APPS_MEMORY_MIB = 128, 384
APPS = "apps"  # redis, nginx, PostgreSQL and sshd, built by `make guest-apps`
NAMES = ("default", APPS)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for on the command line; empty: the default."""

    name: str = ""  # of NAMES, unless kernel or disk say what to boot
    kernel: str = ""
    initrd: str = ""
    append: str = ""
    memory_mib: int = 0
    disk: str = ""
    address: str = ""
    accel: str = "auto"
    shared_disk: bool = False
    luns: tuple[str, ...] = ()  # one disk, as host a and as host b have it


def choose(wanted: Wanted) -> Guest:
    """The guest to boot; LabError if it is not built or a file is missing."""
    preload = BUILT / "libtcgdirty.so"
    named = _named(wanted)
    for lun in named.luns:
        if not Path(lun).is_block_device():
            raise LabError(f"guest: {lun} is no block device: only a disk can be reserved")
    for path in (named.kernel, named.initrd, named.disk):
        if path and not Path(path).is_file():
            raise LabError(f"guest: {path} does not exist")
    return Guest(
        kernel=str(Path(named.kernel).resolve()) if named.kernel else "",
        initrd=str(Path(named.initrd).resolve()) if named.initrd else "",
        append=named.append,
        memory_mib=named.memory_mib or _MEMORY_MIB,
        accel=named.accel,
        address=named.address or DEFAULT_GUEST_ADDRESS,
        preload=str(preload) if preload.exists() else "",
        disk=named.disk,
        shared_disk=named.shared_disk or bool(named.luns),
        luns=named.luns,
    )


def within_reach(guest: Guest, directory: Path) -> Guest:
    """With copies of those files that not every user may read: QEMU is a user of its own. A
    checkout may lie in root's home."""

    def near(path: str) -> str:
        near_enough = not path or _everybody_reads(Path(path).resolve())
        return path if near_enough else _copied(Path(path), directory)

    return replace(
        guest,
        kernel=near(guest.kernel),
        initrd=near(guest.initrd),
        preload=near(guest.preload),
    )


def _everybody_reads(path: Path) -> bool:
    enters = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return enters and bool(path.stat().st_mode & stat.S_IROTH)


def _copied(path: Path, directory: Path) -> str:
    directory.mkdir(mode=0o711, exist_ok=True)
    copy = directory / path.name
    shutil.copyfile(path, copy)
    copy.chmod(0o644)
    return str(copy)


def _named(wanted: Wanted) -> Wanted:
    """What stands for a name, but for what was asked for beside it."""
    if wanted.kernel or wanted.disk:
        if wanted.name:
            raise LabError("guest: either a name, or a kernel or disk of your own")
        if not wanted.kernel and (wanted.initrd or wanted.append):
            raise LabError(
                "guest: without --kernel it boots from its disk, whose boot loader names the "
                "initrd and the kernel's command line: leave --initrd and --append out"
            )
        return wanted
    apps = wanted.name == APPS
    initrd = BUILT / APPS / "initramfs.gz" if apps else BUILT / "initramfs.gz"
    disk = BUILT / APPS / "disk.ext4" if apps else None
    if not wanted.initrd and not (disk or initrd).exists():
        target = "make guest-apps" if apps else "make guest"
        raise LabError(f"the guest is not built ({disk or initrd}): run `{target}`")
    return replace(
        wanted,
        kernel=str(BUILT / "vmlinuz"),
        initrd=wanted.initrd or str(initrd),
        append=wanted.append or APPEND,
        memory_mib=wanted.memory_mib or (_APPS_MEMORY_MIB if apps else 0),
        disk=str(disk) if disk else "",
    )
