# SPDX-License-Identifier: GPL-2.0-only
"""What a VM takes of the kernel's memory is what README says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control import settings
from colo_ebpf.datapath.bpf import syscalls
from colo_ebpf.datapath.net.tunnel import Security
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.lab import mounts
from colo_ebpf.lab.bed import CACHE
from tests.capabilities import ROOT, require

_MB = 1_000_000


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system."""
    require("root", "bpf")
    path = tmp_path / "bpf"
    mounts.mount_bpf(path)
    yield path
    mounts.unmount(path)


def _maps(pins: Path) -> dict[int, int]:
    """Bytes of each map below a directory, by its number: a map may have several pins."""
    found = {}
    for pin in (one for one in pins.rglob("*") if one.is_file() and one.parent != pins):
        fd = syscalls.obj_get(str(pin))
        try:
            text = Path(f"/proc/self/fdinfo/{fd}").read_text()
        finally:
            os.close(fd)
        facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        if "map_id" in facts:
            found[int(facts["map_id"])] = int(facts["memlock"])
    return found


def test_readme_says_how_much(bpffs: Path) -> None:
    """As found: it said 100 MB, and it was 203."""
    spec = settings.plane_spec(parse_config(EXAMPLE, Path("example")), security=Security.NONE)
    plane = DataPlane.open(replace(spec, bpffs=bpffs, cache=CACHE, vm="colotmemory"))
    plane.close()
    taken = sum(_maps(bpffs).values())
    (said,) = re.findall(r"(\d+) MB of the kernel's memory for each VM", _readme())
    assert abs(taken / _MB - int(said)) < 0.05 * int(said), f"{taken / _MB:.0f} MB"


def _readme() -> str:
    return " ".join((ROOT / "README.md").read_text().split())
