# SPDX-License-Identifier: GPL-2.0-only
"""No room is left where a host keeps its state: that stops no takeover."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.lab import faults, mounts
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import Place
from tests.lab import protected

_LIMIT_S = 30.0


def _of_its_own(_: Lab, place: Place) -> None:
    mounts.mount_memory(place.directory / "state", 1 << 20)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A protected pair, whose state directories are file systems of their own."""
    with protected("colofull", prepare=_of_its_own) as made:
        yield made


def _fill(directory: Path) -> None:
    with (directory / "log").open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(bytes(4096))


def test_a_full_state_directory_stops_no_takeover(lab: Lab) -> None:
    """As found: the claim was won, then tried again for ever, and nobody served."""
    state = lab.places["b"].directory / "state"
    before = {one.name for one in state.iterdir()}
    _fill(state)
    faults.kill(lab, "a", "host")

    def serves() -> bool:
        status = lab.ask("b") or {}
        return status.get("state") == "solo" and status.get("step") is None

    lab.wait(serves, "the secondary does not serve", _LIMIT_S)
    assert {one.name for one in state.iterdir()} == before | {"log"}
