# SPDX-License-Identifier: GPL-2.0-only
"""Which guest a lab boots: the default one that `make guest` builds, or anyone's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.errors import LabError
from colo_ebpf.lab.topology import DEFAULT_GUEST_ADDRESS, Guest

BUILT = Path(__file__).resolve().parents[2] / "build" / "guest"
_APPEND = "console=ttyS0 quiet mitigations=off random.trust_cpu=on"
_MEMORY_MIB = 128


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for on the command line; empty: the default."""

    kernel: str = ""
    initrd: str = ""
    append: str = ""
    memory_mib: int = 0
    disk: str = ""
    address: str = ""
    accel: str = "auto"


def choose(wanted: Wanted) -> Guest:
    """The guest to boot; LabError if the default one is not built or a file is missing."""
    own = bool(wanted.kernel or wanted.disk)
    kernel = wanted.kernel or ("" if own else str(BUILT / "vmlinuz"))
    initrd = wanted.initrd or ("" if own else str(BUILT / "initramfs.gz"))
    preload = BUILT / "libtcgdirty.so"
    if not own and not Path(initrd).exists():
        raise LabError(f"the default guest is not built ({initrd}): run `make guest`")
    for path in (kernel, initrd, wanted.disk):
        if path and not Path(path).is_file():
            raise LabError(f"guest: {path} does not exist")
    return Guest(
        kernel=str(Path(kernel).resolve()) if kernel else "",
        initrd=str(Path(initrd).resolve()) if initrd else "",
        append=wanted.append or ("" if own else _APPEND),
        memory_mib=wanted.memory_mib or _MEMORY_MIB,
        accel=wanted.accel,
        address=wanted.address or DEFAULT_GUEST_ADDRESS,
        preload=str(preload) if preload.exists() else "",
        disk=wanted.disk,
    )
