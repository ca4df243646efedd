# SPDX-License-Identifier: GPL-2.0-only
"""Nothing that the tests made may be left when they end."""

from __future__ import annotations

import contextlib
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
    """What tests make is called colot... or lies in a directory of pytest's."""
    found = {f"namespace {p.name}" for p in Path("/var/run/netns").glob("colot*")}
    found |= {f"link {p.name}" for p in Path("/sys/class/net").glob("colot*")}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if "colot" in line or "colo-test" in line:
            found.add(f"mount {line.split()[1]}")
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes()
            ours = b"colot" in words or b"pytest-of" in words
            kinds = b"qemu-system" in words or b"colo_ebpf" in words or words.startswith(b"etcd\0")
            if ours and kinds:
                found.add(f"process {entry.parent.name} {words[:200].decode(errors='replace')}")
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Compares namespaces, links, mounts and processes before and after the session.

    Not with COLO_TESTS_BESIDE: other runs go on beside this one, and labs have fixed names.
    """
    before = _leftovers()
    yield
    from tests.bpf.hosts import TwoHosts
    from tests.bpf.rig import Rig

    TwoHosts.close()
    Rig.close_all()
    left = set() if "COLO_TESTS_BESIDE" in os.environ else _leftovers() - before
    assert not left, f"left behind: {sorted(left)}"
