# SPDX-License-Identifier: GPL-2.0-only
"""The parts of the suite, and one run of some of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from colo_ebpf.bench.names import OURS, PLAIN, QEMU
from colo_ebpf.bench.results import Recorder
from colo_ebpf.errors import BenchError

LANES = (PLAIN, QEMU, OURS)
PARTS = {
    "applications": "apps",
    "lanes": "lanes",
    "alone": "kernel",
    "programs": "kernel",
    "growth": "kernel",
    "control": "pair",
}  # which package each of them is in


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of it. A part says itself what it leaves out when `quick`."""

    quick: bool
    lanes: tuple[str, ...] = LANES


class Part(Protocol):
    """A module `colo_ebpf.bench.PACKAGE.part_NAME`."""

    def run(self, recorder: Recorder, effort: Effort) -> None:
        """Measure; raises BenchError, or what the parts of the product raise."""


def _nothing() -> None: ...


def run(
    names: Sequence[str], recorder: Recorder, quick: bool, done: Callable[[], None] = _nothing
) -> None:
    """The named parts and lanes, or all. A lane's name means the lanes part with it. `done` is
    called after each part: what was measured for half an hour is not lost with the next."""
    if unknown := [name for name in names if name not in (*PARTS, *LANES)]:
        raise BenchError(f"{unknown[0]}: not one of {', '.join((*PARTS, *LANES))}")
    lanes = tuple(name for name in LANES if name in names) or LANES
    wanted = {("lanes" if name in LANES else name) for name in names} or set(PARTS)
    for name, package in PARTS.items():
        if name in wanted:
            recorder.say(f"{name}: begins")
            module = f"colo_ebpf.bench.{package}.part_{name}"
            part = cast(Part, importlib.import_module(module))
            part.run(recorder, Effort(quick, lanes))
            done()
