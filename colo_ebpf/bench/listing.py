# SPDX-License-Identifier: GPL-2.0-only
"""What can be read off the loaded programs and maps without running them."""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.bench import names_kernel as names
from colo_ebpf.bench.results import Recorder
from colo_ebpf.datapath.sysbpf import map_info, program_info
from colo_ebpf.lab.bed import Bed

_INSTRUCTION_BYTES = 8


@dataclass(frozen=True, slots=True)
class OpenMap:
    """A map some descriptor of this process stands for."""

    number: int  # the kernel's id
    name: str
    bytes: int  # what the kernel counts for it


def maps_open() -> frozenset[OpenMap]:
    """All maps this process has open (fdinfo of its descriptors)."""
    found = set()
    for entry in Path("/proc/self/fdinfo").iterdir():
        try:
            lines = entry.read_text().splitlines()
        except OSError:  # the descriptor of this very listing
            continue
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        if "map_id" in fields:
            name = map_info(int(entry.name)).name
            found.add(OpenMap(int(fields["map_id"]), name, int(fields["memlock"])))
    return frozenset(found)


def memory_free_bytes() -> int:
    """What the machine could still give (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def add(recorder: Recorder, part: str, bed: Bed, before: Set[OpenMap]) -> None:
    """Rows of the programs of a plane, and of the maps opened since `before`."""
    for name, fd in bed.plane.programs.items():
        info = program_info(fd)
        count = info.translated_bytes // _INSTRUCTION_BYTES
        recorder.add(part, names.INSTRUCTIONS, name, "instructions", values=(count,))
        recorder.add(part, names.VERIFIED, name, "instructions", values=(info.verified,))
        recorder.add(part, names.MACHINE_CODE, name, "B", values=(info.jited_bytes,))
    for source, seconds in bed.plane.load_s.items():
        recorder.add(part, names.LOAD, source, "s", values=(seconds,))
    fresh = maps_open() - before
    sizes = sorted(fresh, key=lambda one: -one.bytes)
    for one in sizes:
        recorder.add(part, names.MEMORY, one.name, "MiB", values=(one.bytes / 2**20,))
    total = sum(one.bytes for one in fresh) / 2**20
    recorder.add(part, names.MEMORY, names.TOTAL, "MiB", values=(total,), note=_sizes(bed))


def _sizes(bed: Bed) -> str:
    sizes = bed.spec.sizes
    cpus = os.sysconf("SC_NPROCESSORS_CONF")
    return f"{sizes.flows} flows, {sizes.hold_slots} held frames, {cpus} CPUs"
