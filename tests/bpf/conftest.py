# SPDX-License-Identifier: GPL-2.0-only
"""What all tests of the programs need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from colo_ebpf.model import Mode, VmRole
from tests.bpf.rig import Rig
from tests.capabilities import require


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf")


@pytest.fixture
def secondary() -> Iterator[Rig]:
    """A secondary in epoch 3."""
    with Rig(VmRole.SECONDARY) as rig:
        rig.pair(3, Mode.SECONDARY)
        yield rig
