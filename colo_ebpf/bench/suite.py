# SPDX-License-Identifier: GPL-2.0-only
"""The parts of the suite, and one run of some of them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from colo_ebpf.bench.names import OURS, PLAIN, QEMU
from colo_ebpf.bench.results import Recorder
from colo_ebpf.errors import BenchError

LANES = (PLAIN, QEMU, OURS)
PARTS = ("applications", "lanes", "alone", "programs", "growth", "control")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of it. A part says itself what it leaves out when `quick`."""

    quick: bool
    lanes: tuple[str, ...] = LANES


class Part(Protocol):
    """A module `colo_ebpf.bench.part_NAME`."""

    def run(self, recorder: Recorder, effort: Effort) -> None:
        """Measure; raises BenchError, or what the parts of the product raise."""


def run(names: Sequence[str], recorder: Recorder, quick: bool) -> None:
    """The named parts and lanes, or all. A lane's name means the lanes part with it."""
    if unknown := [name for name in names if name not in (*PARTS, *LANES)]:
        raise BenchError(f"{unknown[0]}: not one of {', '.join((*PARTS, *LANES))}")
    lanes = tuple(name for name in LANES if name in names) or LANES
    wanted = {("lanes" if name in LANES else name) for name in names} or set(PARTS)
    for name in PARTS:
        if name in wanted:
            recorder.say(f"{name}: begins")
            part = cast(Part, importlib.import_module(f"colo_ebpf.bench.part_{name}"))
            part.run(recorder, Effort(quick, lanes))
