# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernel takes the data plane, as Debian's compiler made it. Its verifier knows less than
that of the newest kernel. Each is a function that asserts.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from colo_ebpf.datapath.bpf import image, loader

IMAGES = Path("/trial/images")
MTUS = (1500, 9000)
_BPFFS = Path("/sys/fs/bpf")
_MOST = 900_000  # instructions that the verifier looks at; at a million it refuses


def sizes(mtu: int) -> loader.Sizes:
    """Of the maps: small, but for what depends on the frames."""
    return loader.Sizes(256, 1024, 64, loader.frame_bytes(mtu))


def _looked_at(descriptor: int) -> int:
    """How many instructions the verifier looked at for a program."""
    told = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    (count,) = re.findall(r"^verified_insns:\s*(\d+)$", told, re.MULTILINE)
    return int(count)


def _are_taken(mtu: int) -> None:
    if not _BPFFS.is_mount():
        subprocess.run(["mount", "-t", "bpf", "bpf", str(_BPFFS)], check=True)
    pins = _BPFFS / f"frames-{mtu}"
    pins.mkdir()
    found = [image.decode(path.read_bytes()) for path in sorted(IMAGES.glob(f"{mtu}-*"))]
    loaded = {name: fd for one in loader.load(found, pins) for name, fd in one.programs.items()}
    assert loaded.keys() == {name for names in loader.PROGRAMS.values() for name in names}
    counts = {name: _looked_at(fd) for name, fd in loaded.items()}
    assert {name: count for name, count in counts.items() if count > _MOST} == {}


def its_verifier_takes_the_programs() -> None:
    """As found: no kernel of Debian did, for all tests had run on a newer one."""
    _are_taken(1500)


def its_verifier_takes_the_programs_for_jumbo_frames() -> None:
    _are_taken(9000)


ALL: list[Callable[[], None]] = [
    its_verifier_takes_the_programs,
    its_verifier_takes_the_programs_for_jumbo_frames,
]
