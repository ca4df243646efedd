# SPDX-License-Identifier: GPL-2.0-only
"""What can be read off the loaded programs and maps without running them."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_ebpf.bench.kernel import names
from colo_ebpf.bench.results import Recorder
from colo_ebpf.datapath.bpf import compiler, loader
from colo_ebpf.datapath.bpf.syscalls import program_info
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.bed import Bed

_INSTRUCTION_BYTES = 8
_PATIENCE_S = 10


@dataclass(frozen=True, slots=True)
class LoadedMap:
    """A map that some program uses."""

    number: int  # the kernel's id
    name: str
    bytes: int  # what the kernel counts for it


def maps_of(plane: DataPlane) -> frozenset[LoadedMap]:
    """All maps that its programs use, pinned or not. Raises BenchError."""
    ids: set[int] = set()
    for fd in plane.programs.values():
        fields = Path(f"/proc/self/fdinfo/{fd}").read_text().split()
        number = fields[fields.index("prog_id:") + 1]
        ids.update(_bpftool("prog", number)["map_ids"])
    maps = [_bpftool("map", str(number)) for number in ids]
    return frozenset(LoadedMap(m["id"], m["name"], int(m["bytes_memlock"])) for m in maps)


def _bpftool(kind: str, number: str) -> dict[str, Any]:
    argv = ["bpftool", "--json", kind, "show", "id", number]
    try:
        done = subprocess.run(argv, capture_output=True, check=True, timeout=_PATIENCE_S)
        return dict(json.loads(done.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as e:
        raise BenchError(f"{' '.join(argv)}: {e}: install bpftool") from e


def memory_free_bytes() -> int:
    """What the machine could still give (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def add(recorder: Recorder, part: str, bed: Bed) -> None:
    """Rows of the programs of a plane, and of their maps."""
    for name, fd in bed.plane.programs.items():
        info = program_info(fd)
        count = info.translated_bytes // _INSTRUCTION_BYTES
        recorder.add(part, names.INSTRUCTIONS, name, "instructions", values=(count,))
        recorder.add(part, names.VERIFIED, name, "instructions", values=(info.verified,))
        recorder.add(part, names.MACHINE_CODE, name, "B", values=(info.jited_bytes,))
    for source, programs in loader.PROGRAMS.items():
        for measure, cache in ((names.LOAD, None), (names.LOAD_KEPT, bed.spec.cache)):
            seconds = _load_s(bed, source, programs, cache)
            recorder.add(part, measure, source, "s", values=(seconds,))
    maps = maps_of(bed.plane)
    sizes = sorted(maps, key=lambda one: -one.bytes)
    for one in sizes:
        recorder.add(part, names.MEMORY, one.name, "MiB", values=(one.bytes / 2**20,))
    total = sum(one.bytes for one in maps) / 2**20
    recorder.add(part, names.MEMORY, names.TOTAL, "MiB", values=(total,), note=_sizes(bed))


def _load_s(bed: Bed, source: str, programs: tuple[str, ...], cache: Path | None) -> float:
    """Once more, beside what is attached; with nothing kept if there is no cache."""
    wanted = loader.read(loader.source_directory() / source, programs, bed.spec.sizes)
    start = time.monotonic()
    if cache:
        images = loader.images([wanted], cache)
    else:
        images = compiler.compile_all([wanted], loader.trees(bed.spec.cache))
    (module,) = loader.load(images, bed.pins)
    seconds = time.monotonic() - start
    module.close()
    return seconds


def _sizes(bed: Bed) -> str:
    sizes = bed.spec.sizes
    cpus = os.sysconf("SC_NPROCESSORS_CONF")
    return f"{sizes.flows} flows, {sizes.hold_slots} held frames, {cpus} CPUs"
