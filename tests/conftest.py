# SPDX-License-Identifier: GPL-2.0-only
"""Nothing that the tests made may be left when they end."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest


def _of_another_run(name: str) -> bool:
    """A rig's names carry the pid of its test run: several may run on one machine."""
    owner = re.search(r"colotq?(\d+)|colo-test-bpf-(\d+)-", name)
    return owner is not None and str(os.getpid()) not in owner.groups()


def _leftovers() -> set[str]:
    return {name for name in _all_there_is() if not _of_another_run(name)}


def _all_there_is() -> set[str]:
    found = {f"namespace {p.name}" for p in Path("/var/run/netns").glob("colo*")}
    found |= {f"link {p.name}" for p in Path("/sys/class/net").glob("colo*")}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if "colo" in line.split()[1]:
            found.add(f"mount {line.split()[1]}")
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"qemu-system" in words[0] or b"colo_ebpf" in b" ".join(words[1:4]):
            found.add(f"process {entry.parent.name} {words[0].decode(errors='replace')}")
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Compares namespaces, links, mounts and processes before and after the session."""
    before = _leftovers()
    yield
    from tests.bpf.rig import Rig

    Rig.close_all()
    left = _leftovers() - before
    assert not left, f"left behind: {sorted(left)}"
