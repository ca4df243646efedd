# SPDX-License-Identifier: GPL-2.0-only
"""Which QEMU is used for what, and what one is asked before it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.control.qemu import support
from colo_ebpf.control.qemu.support import Use, Version, refused, require_colo
from colo_ebpf.errors import QmpError, VmError

KVM = Use("qemu")
TCG = Use("qemu", accel="tcg")
HELPED = Use("qemu", accel="tcg", preload="/helper.so")
Q35 = Use("qemu", machine="q35")


@pytest.mark.parametrize(
    ("version", "use", "why"),
    [
        ((7, 2, 22), KVM, ""),
        ((8, 1, 5), KVM, ""),
        ((8, 2, 1), KVM, "aborts when a secondary enters COLO"),
        ((9, 0, 4), KVM, "aborts when a secondary enters COLO"),
        ((9, 1, 0), KVM, ""),
        ((10, 0, 2), KVM, "never enter COLO; install 10.0.7 or later"),
        ((10, 0, 6), KVM, "never enter COLO; install 10.0.7 or later"),
        ((10, 0, 7), KVM, ""),
        ((10, 0, 13), KVM, ""),
        ((10, 1, 3), KVM, "never enter COLO; install 10.0.7 or later"),
        ((10, 2, 0), KVM, ""),
        ((11, 1, 3), KVM, ""),
        ((7, 2, 22), Q35, 'machine q35: .* set machine = "pc"'),
        ((10, 2, 9), Use("qemu", machine="pc-q35-7.2,smm=off"), "machine pc-q35-7.2,smm=off: "),
        ((11, 0, 0), Q35, ""),
        ((7, 2, 22), TCG, "under TCG .* set vm.preload"),
        ((11, 1, 3), TCG, "under TCG QEMU 11 .* use KVM, or QEMU 10"),
        ((11, 1, 3), HELPED, "under TCG QEMU 11 .* use KVM, or QEMU 10"),
        ((7, 2, 22), HELPED, ""),
        ((10, 0, 13), HELPED, ""),
    ],
)
def test_what_is_known_to_be_bad_is_refused(version: Version, use: Use, why: str) -> None:
    said = refused(version, use)
    assert bool(said) == bool(why), said
    assert re.search(why, said)


class Asked:
    """A QEMU as its monitor shows it."""

    def __init__(self, refuses: dict[frozenset[str], str] | None = None, **known: Any) -> None:
        self.on: set[str] = set()
        self._refuses = refuses or {}
        self._names = known.get("names", ("events", "return-path", "x-colo"))
        self._version: Version = known.get("version", (7, 2, 22))

    async def __call__(self, command: str, **arguments: Any) -> Any:
        if command == "query-migrate-capabilities":
            return [{"capability": name, "state": name in self.on} for name in self._names]
        if command == "query-version":
            return {"qemu": dict(zip(("major", "minor", "micro"), self._version, strict=True))}
        assert command == "migrate-set-capabilities"
        on = set(self.on)
        for one in arguments["capabilities"]:
            (on.add if one["state"] else on.discard)(one["capability"])
        if "x-colo" in on and frozenset(on) in self._refuses:
            raise QmpError(self._refuses[frozenset(on)])
        self.on = on
        return {}


ALONE, BOTH = frozenset({"x-colo"}), frozenset({"x-colo", "return-path"})


async def test_a_qemu_that_takes_it_is_left_as_it_was() -> None:
    asked = Asked()
    assert await require_colo(asked, KVM) == (7, 2, 22)
    assert asked.on == set()


async def test_a_qemu_that_wants_the_return_path_gets_it() -> None:
    asked = Asked({ALONE: "Capability 'x-colo' requires capability 'return-path'"})
    assert await require_colo(asked, KVM)
    assert asked.on == {"return-path"}


async def test_a_qemu_that_lists_it_and_refuses_it_is_refused() -> None:
    words = "QEMU compiled without replication module can't enable COLO"
    with pytest.raises(QmpError, match=f"built with COLO and replication: {words}"):
        await require_colo(Asked({ALONE: words, BOTH: words}), KVM)


async def test_a_qemu_without_it_is_refused() -> None:
    with pytest.raises(QmpError, match="has no x-colo capability; install a QEMU built with COLO"):
        await require_colo(Asked(names=("events",)), KVM)


async def test_the_version_it_says_it_has_is_judged() -> None:
    with pytest.raises(QmpError, match=r"qemu 10\.1\.0: QEMU 10\.0 before 10\.0\.7, and 10\.1"):
        await require_colo(Asked(version=(10, 1, 0)), KVM)


async def test_the_release_is_read_from_what_it_prints(tmp_path: Path) -> None:
    binary = tmp_path / "qemu"
    binary.write_text("#!/bin/sh\necho 'QEMU emulator version 10.0.13 (Debian 1:10.0)'\n")
    binary.chmod(0o755)
    assert await support.release_of(str(binary)) == (10, 0)
    binary.write_text("#!/bin/sh\necho nothing\n")
    with pytest.raises(VmError, match="no version in"):
        await support.release_of(str(binary))
    with pytest.raises(VmError, match="install qemu-system-x86"):
        await support.release_of(str(tmp_path / "none"))
