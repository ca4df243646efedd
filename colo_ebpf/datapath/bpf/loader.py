# SPDX-License-Identifier: GPL-2.0-only
"""The BPF sources, compiled and loaded, bound to the pinned maps of one VM.

Compiling (`compiler`) makes an image, which is kept (`image_cache`); loading makes programs and
maps of it, which are pinned (`pinned_programs`). What is there already is not made again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.datapath.bpf import abi, compiler, libbpf, syscalls
from colo_ebpf.datapath.bpf.image import Image, MapDefinition, Program, Source
from colo_ebpf.datapath.bpf.image_cache import Kept
from colo_ebpf.errors import DatapathError, LoadError, VerifierError

_log = logging.getLogger(__name__)

PROGRAMS = {
    "compare.c": (
        "colo_cmp_pvm",
        "colo_cmp_svm",
        "colo_drain",
        "colo_enter",
        "colo_flush",
        "colo_long_pvm",
        "colo_long_svm",
        "colo_owe",
        "colo_park",
        "colo_rst_pvm",
        "colo_rst_svm",
    ),
    "mirror.c": (
        "colo_mir_cli",
        "colo_mir_link",
        "colo_mir_svm",
    ),
    "lasting.c": (
        "colo_last_in",
        "colo_last_out",
    ),
    "upkeep.c": (
        "colo_beacon",
        "colo_farewell",
        "colo_age",
    ),
}

_LOG_CHARACTERS = 6000
_HEAD_BYTES = 256  # COLO_HEAD_MAX
_SUM_BYTES = 508  # COLO_SUM_BYTES
_LEAST_SLOTS = 256


def frame_bytes(mtu: int) -> int:
    """Size of a slot of the hold store that takes any frame of a NIC with this MTU."""
    return _HEAD_BYTES + math.ceil((mtu + 64) / _SUM_BYTES) * _SUM_BYTES + 16


def hold_slots(mib: int, slot_bytes: int) -> int:
    """How many slots fit into so many MiB: a power of two, and never fewer than one burst needs."""
    slots: int = 1 << ((mib << 20) // slot_bytes).bit_length() - 1
    return max(slots, _LEAST_SLOTS)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Capacities of the maps; slots and buckets are powers of two."""

    flows: int
    hold_slots: int
    dgram_buckets: int
    frame_bytes: int = frame_bytes(1500)


@dataclass(frozen=True, slots=True)
class Module:
    """A loaded source: descriptors of its programs, and of those of its maps that have no pin."""

    programs: dict[str, int]
    maps: dict[str, int]

    def close(self) -> None:
        """What is attached or pinned lives on."""
        for fd in (*self.programs.values(), *self.maps.values()):
            os.close(fd)


def source_directory() -> Path:
    """Where the C sources are: COLO_EBPF_BPF, beside the package in a checkout, or installed."""
    named = os.environ.get("COLO_EBPF_BPF")
    checkout = Path(__file__).resolve().parents[3] / "bpf"
    places = [Path(named)] if named else [checkout, Path(sys.prefix) / "share/colo-ebpf/bpf"]
    for path in places:
        if (path / "compare.c").exists():
            return path
    raise LoadError(f"BPF sources: no compare.c in {' or '.join(map(str, places))}")


def all_pins(bpffs: Path) -> Path:
    """What there is of ours in a BPF file system; the kernel may have files of its own beside."""
    return bpffs / "colo_ebpf"


def pin_directory(bpffs: Path, vm: str) -> Path:
    """Where the maps of one VM are pinned. The layout's version is part of the path.

    A BPF file system takes no dots in names; `+` stands for them, which no VM's name has.
    """
    return all_pins(bpffs) / f"v{abi.ABI_VERSION}" / vm.replace(".", "+")


def make_pin_directory(bpffs: Path, vm: str) -> Path:
    """The same, made if it was not there; LoadError if that cannot be done."""
    path = pin_directory(bpffs, vm)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise LoadError(f"{path}: cannot be made: {e.strerror}; may root write there?") from e
    return path


def flags(sizes: Sizes) -> tuple[str, ...]:
    """What clang is told."""
    return (
        f"-DCOLO_FLOWS={sizes.flows}",
        f"-DCOLO_HOLD_SLOTS={sizes.hold_slots}",
        f"-DCOLO_DGRAM_BUCKETS={sizes.dgram_buckets}",
        f"-DCOLO_FRAME_MAX={sizes.frame_bytes}",
        f"-DCOLO_CPUS={os.sysconf('SC_NPROCESSORS_CONF')}",
        "-Wno-macro-redefined",
    )


def read(path: Path, programs: tuple[str, ...], sizes: Sizes) -> Source:
    """A source, as it is compiled for these sizes."""
    text = compiler.flatten(path, source_directory() / "include")
    return Source(path.name, text, flags(sizes), programs)


def shipped(sizes: Sizes) -> list[Source]:
    """The sources of a data plane."""
    return [read(source_directory() / name, PROGRAMS[name], sizes) for name in PROGRAMS]


def trees(cache: Path) -> Path:
    """Where a tree of kernel headers may be made."""
    return cache / "headers"


def images(sources: Sequence[Source], cache: Path) -> list[Image]:
    """What each compiles to: kept from before, or compiled now, and kept. Raises LoadError."""
    kept = Kept(cache / "programs")
    found = [kept.find(source) for source in sources]
    if not all(found):
        with kept.alone():  # who was before us may have made it
            found = [kept.find(source) for source in sources]
            wanted = [source for source, one in zip(sources, found, strict=True) if not one]
            made = iter(_compiled(wanted, kept, cache))
            found = [one or next(made) for one in found]
    return [one for one in found if one]


def _compiled(sources: Sequence[Source], kept: Kept, cache: Path) -> list[Image]:
    if not sources:
        return []
    names = " and ".join(source.name for source in sources)
    _log.info("compiling %s: nothing of theirs is kept for this kernel", names)
    start = time.monotonic()
    made = compiler.compile_all(sources, trees(cache), kept.keep)
    _log.info("compiled %s in %.1f s", names, time.monotonic() - start)
    return made


def load(found: Sequence[Image], pins: Path) -> list[Module]:
    """Have images verified, over the VM's pinned maps, which are made if they are not there.

    Raises LoadError, with the verifier's log if it is that which refuses.
    """
    check_pins(pins, found)
    with contextlib.ExitStack() as passing, contextlib.ExitStack() as lasting:
        bound = [_Bound.of(image, pins, passing, lasting) for image in found]
        jobs = [(one, program) for one in bound for program in one.image.programs]
        for (one, program), fd in zip(jobs, _verified(jobs), strict=True):
            one.module.programs[program.name] = fd
        lasting.pop_all()
    return [one.module for one in bound]


def load_one(
    path: Path, programs: tuple[str, ...], pins: Path, sizes: Sizes, cache: Path
) -> Module:
    """A source of our own beside those of the data plane, bound to the VM's pinned maps."""
    return load(images([read(path, programs, sizes)], cache), pins)[0]


@dataclass(frozen=True, slots=True)
class _Bound:
    """An image whose maps are there. `types`: the descriptor of its BTF, or 0."""

    image: Image
    types: int
    maps: list[int]
    module: Module

    @classmethod
    def of(
        cls, image: Image, pins: Path, passing: contextlib.ExitStack, lasting: contextlib.ExitStack
    ) -> _Bound:
        """`passing` closes what loaded programs keep alive, `lasting` what the module names."""
        types = libbpf.btf_load(image.types) if image.types else 0
        if types:
            passing.callback(os.close, types)
        made = cls(image, types, [], Module({}, {}))
        for definition in image.maps:
            fd = _pinned(definition, types, pins) if definition.pinned else _make(definition, types)
            (passing if definition.pinned else lasting).callback(os.close, fd)
            made.maps.append(fd)
            if not definition.pinned:
                made.module.maps[definition.name] = fd
        return made

    def verified(self, program: Program) -> int:
        """Its descriptor. Other threads run meanwhile."""
        code = self.image.code(program, self.maps)
        words = (program.name, self.image.license, code)
        try:
            return libbpf.program_load(
                *words, btf=self.types, functions=program.functions, lines=program.lines
            )
        except VerifierError as e:
            said = str(e)[-_LOG_CHARACTERS:]
            raise LoadError(
                f"{self.image.source}: the verifier refuses {program.name}:\n{said}"
            ) from e


def _verified(jobs: Sequence[tuple[_Bound, Program]]) -> list[int]:
    """As many at once as there are processors, the longest first. All, or LoadError."""
    longest_first = sorted(range(len(jobs)), key=lambda n: -len(jobs[n][1].code))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        started = {n: threads.submit(jobs[n][0].verified, jobs[n][1]) for n in longest_first}
    futures = [started[n] for n in range(len(jobs))]
    refused = [future.exception() for future in futures if future.exception()]
    if refused:
        for future in futures:
            if not future.exception():
                os.close(future.result())
        raise refused[0] or LoadError("no program")
    return [future.result() for future in futures]


def _make(definition: MapDefinition, types: int) -> int:
    sizes = (definition.key_bytes, definition.value_bytes, definition.entries)
    words = (definition.kind, definition.name, sizes, definition.flags)
    typed = (types, definition.key_type, definition.value_type)
    if all(typed):
        with contextlib.suppress(DatapathError):  # the kernel takes no types for some kinds
            return libbpf.map_create(*words, typed)
    return libbpf.map_create(*words, (0, 0, 0))


def _pinned(definition: MapDefinition, types: int, pins: Path) -> int:
    path = pins / definition.name
    if path.exists():
        return syscalls.obj_get(str(path))
    fd = _make(definition, types)
    try:
        syscalls.obj_pin(fd, str(path))
    except DatapathError:
        os.close(fd)
        raise
    return fd


def check_pins(pins: Path, found: Sequence[Image]) -> None:
    """Refuse pinned maps of another layout, before anything is made."""
    pinned = {one.name: one for image in found for one in image.maps if one.pinned}
    for name, wanted in sorted(pinned.items()):
        path = pins / name
        if not path.exists():
            continue
        fd = syscalls.obj_get(str(path))
        try:
            info = syscalls.map_info(fd)
        finally:
            os.close(fd)
        there = (info.type, info.key_bytes, info.value_bytes, info.max_entries)
        if there != (wanted.kind, wanted.key_bytes, wanted.value_bytes, wanted.entries):
            raise LoadError(
                f"{path}: pinned with {info.max_entries} entries of {info.value_bytes} bytes, "
                f"this version wants {wanted.entries} of {wanted.value_bytes}; stop the VM's "
                f"protection and remove {pins}"
            )


def require_bpffs(bpffs: Path) -> None:
    """DatapathError unless `bpffs` is a mounted BPF file system."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "bpf" and Path(fields[1]) == bpffs:
            return
    raise DatapathError(f"{bpffs}: no BPF file system; mount -t bpf bpf {bpffs}")
