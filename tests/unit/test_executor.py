# SPDX-License-Identifier: GPL-2.0-only
"""What the steps do around a VM, on toy parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.control.decision.actions import StartVm
from colo_ebpf.model import VmRole
from tests.unit.toy_steps import steps_of


class _Parts:
    """Plane, machine, arbiter and the VM before, in one: writes down what is asked of them."""

    def __init__(self, *, alive: bool) -> None:
        self.alive, self.did = alive, list[str]()
        self.known = list[object]()  # of each `listen`

    def __getattr__(self, name: str) -> Any:
        async def noted(*_args: object, **words: object) -> _Parts:
            self.did.append(name)
            self.known += [words["known"]] if "known" in words else []
            return self

        return noted


@pytest.mark.parametrize(("alive", "ends"), [(False, 1), (True, 0)])
async def test_a_vm_that_ended_by_itself_lets_go_of_all_before_the_next_starts(
    tmp_path: Path, alive: bool, ends: int
) -> None:
    """Of its files and sockets in the daemon. One that lives is never ended in passing."""
    parts = _Parts(alive=alive)
    await steps_of(parts, tmp_path, before=parts).run(
        StartVm(VmRole.SECONDARY, "b/00000000000000bb")
    )
    assert parts.did[: parts.did.index("start")].count("kill") == ends


@pytest.mark.parametrize("seen_before", [False, True])
async def test_images_are_known_once_a_vm_ran_on_the_host(
    tmp_path: Path, seen_before: bool
) -> None:
    """Now or in the days of a daemon before: a replica is then made by digests."""
    if seen_before:
        (tmp_path / "generation").write_text("7\n")
    parts = _Parts(alive=False)
    steps = steps_of(parts, tmp_path)
    for number in range(2):
        await steps.run(StartVm(VmRole.SECONDARY, f"b/{number:016x}"))
    assert parts.known == [seen_before, True]
