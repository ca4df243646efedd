# SPDX-License-Identifier: GPL-2.0-only
"""The steps of a daemon over toy parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colo_ebpf.control.executor import Steps
from colo_ebpf.control.state.files import GenerationFloor
from colo_ebpf.control.state.inconsistent import InconsistentImages


def steps_of(
    parts: Any, state_dir: Path, *, before: Any = None, fence: Any = None, reserve: Any = None
) -> Steps:
    """`parts`: plane, machine and arbiter in one. `before`: the VM that was here last."""
    return Steps(
        parts,
        parts,
        parts,
        floor=GenerationFloor(state_dir),
        inconsistent=InconsistentImages(state_dir),
        peer_address="192.0.2.2",
        current=lambda: before,
        started=lambda vm, endpoints: None,
        folded=lambda entries: None,
        fence=fence,
        reserve=reserve,
    )
