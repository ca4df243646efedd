# SPDX-License-Identifier: GPL-2.0-only
"""Compile and load the BPF sources with bcc, and bind them to the pinned maps of one VM."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_ebpf.datapath import abi, headers, sysbpf
from colo_ebpf.errors import DatapathError, LoadError

_STAGES = ("colo_drain", "colo_enter", "colo_cmp_pvm", "colo_cmp_svm")  # by COLO_STAGE_...
PROGRAMS = {
    "compare.c": ("colo_cmp_pvm", "colo_cmp_svm", "colo_drain", "colo_enter", "colo_flush"),
    "mirror.c": (
        "colo_mir_cli",
        "colo_mir_link",
        "colo_mir_svm",
        "colo_beacon",
        "colo_farewell",
        "colo_age",
        "colo_last_in",
        "colo_last_out",
    ),
}


_HEAD_BYTES = 256  # COLO_HEAD_MAX
_SUM_BYTES = 508  # COLO_SUM_BYTES
_LEAST_SLOTS = 256


def frame_bytes(mtu: int) -> int:
    """Size of a slot of the hold store that takes any frame of a NIC with this MTU."""
    return _HEAD_BYTES + math.ceil((mtu + 64) / _SUM_BYTES) * _SUM_BYTES + 16


def hold_slots(mib: int, slot_bytes: int) -> int:
    """How many slots fit into so many MiB: a power of two, and never fewer than one burst needs."""
    fit: int = 1 << ((mib << 20) // slot_bytes).bit_length() - 1
    return max(fit, _LEAST_SLOTS)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Capacities of the maps; slots and buckets are powers of two."""

    flows: int
    hold_slots: int
    dgram_buckets: int
    frame_bytes: int = frame_bytes(1500)


@dataclass(frozen=True, slots=True)
class Module:
    """A loaded source: descriptors of its programs, and bcc's object for its ring buffer."""

    bpf: Any
    programs: dict[str, int]


def source_directory() -> Path:
    """Where the C sources are: COLO_EBPF_BPF, beside the package in a checkout, or installed."""
    named = os.environ.get("COLO_EBPF_BPF")
    checkout = Path(__file__).resolve().parents[2] / "bpf"
    places = [Path(named)] if named else [checkout, Path(sys.prefix) / "share/colo-ebpf/bpf"]
    for path in places:
        if (path / "compare.c").exists():
            return path
    raise LoadError(f"BPF sources: no compare.c in {' or '.join(map(str, places))}")


def pin_directory(bpffs: Path, vm: str) -> Path:
    """Where the maps of one VM are pinned. The layout's version is part of the path."""
    return bpffs / "colo_ebpf" / f"v{abi.ABI_VERSION}" / vm


def flatten(source: Path, include: Path, seen: set[Path] | None = None) -> str:
    """The source with our own headers inlined.

    bcc rewrites map accesses in the main file only, so that a header with a map in it must
    become part of the main file. #line keeps the compiler's messages right.
    """
    seen = set() if seen is None else seen
    out = [f'#line 1 "{source}"']
    for number, line in enumerate(source.read_text().splitlines(), 1):
        match = re.match(r'#include "(colo_\w+\.h)"', line)
        if not match:
            out.append(line)
            continue
        header = include / match[1]
        if header not in seen:
            seen.add(header)
            out.append(flatten(header, include, seen))
        out.append(f'#line {number + 1} "{source}"')
    return "\n".join(out)


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
    """bcc and the verifier write their log to file descriptor 2 only."""
    with tempfile.TemporaryFile() as log:
        saved = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _log_text(log: Any) -> str:
    log.seek(0)
    text: str = log.read().decode(errors="replace")
    return text.strip()[-6000:]


def load(source: Path, names: tuple[str, ...], pins: Path, sizes: Sizes, cache: Path) -> Module:
    """Compile `source` and load the named programs.

    LoadError carries the compiler's or the verifier's log. Changes the working directory while
    it compiles (bcc does): call it before anything else runs.
    """
    from bcc import BPF

    tree = headers.find(cache)
    if tree:
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
    include = source_directory() / "include"
    flags = [
        f'-DCOLO_PIN="{pins}"',
        f"-DCOLO_FLOWS={sizes.flows}",
        f"-DCOLO_HOLD_SLOTS={sizes.hold_slots}",
        f"-DCOLO_DGRAM_BUCKETS={sizes.dgram_buckets}",
        f"-DCOLO_FRAME_MAX={sizes.frame_bytes}",
        f"-DCOLO_CPUS={os.sysconf('SC_NPROCESSORS_CONF')}",
        "-Wno-macro-redefined",
    ]
    name = source.name
    with _captured_stderr() as log:
        try:
            bpf = BPF(text=flatten(source, include).encode(), cflags=flags)
        except Exception as e:
            raise LoadError(f"{name}: does not compile:\n{_log_text(log)}") from e
        programs = {}
        for program in names:
            try:
                programs[program] = bpf.load_func(program.encode(), BPF.SCHED_CLS).fd
            except Exception as e:
                text = _log_text(log)
                raise LoadError(f"{name}: the verifier refuses {program}:\n{text}") from e
    for number, program in enumerate(_STAGES):
        if program in programs:
            bpf[b"colo_stages"][ctypes.c_int(number)] = ctypes.c_int(programs[program])
    bpf.free_bcc_memory()
    return Module(bpf, programs)


def keep_stages(module: Module, pins: Path) -> None:
    """Pin what the attached programs call, in place of what their predecessors called.

    The kernel empties a table of programs that no process has open and no path names: a daemon
    that died would leave the frames that complete held ones without the program that sends them.
    """
    fresh = pins / "colo_stages_new"
    fresh.unlink(missing_ok=True)
    sysbpf.obj_pin(module.bpf[b"colo_stages"].map_fd, str(fresh))
    fresh.rename(pins / "colo_stages")


def check_pins(pins: Path, sizes: Sizes) -> None:
    """Refuse pinned maps of another layout: bcc would bind to them without looking."""
    wanted = {
        "colo_flows": (_size("colo_flow"), sizes.flows),
        "colo_places": (_size("colo_flow_key"), 2 * sizes.flows),
        "colo_hold": (_size("colo_slot"), sizes.hold_slots),
        "colo_frames": (sizes.frame_bytes, sizes.hold_slots),
        "colo_conf": (_size("colo_conf"), 1),
        "colo_offs": (_size("colo_off"), sizes.flows),
        "colo_last": (_size("colo_lasting"), sizes.flows),
    }
    for name, (value_bytes, entries) in wanted.items():
        path = pins / name
        if not path.exists():
            continue
        fd = sysbpf.obj_get(str(path))
        try:
            info = sysbpf.map_info(fd)
        finally:
            os.close(fd)
        if (info.value_bytes, info.max_entries) != (value_bytes, entries):
            raise LoadError(
                f"{path}: pinned with {info.max_entries} entries of {info.value_bytes} bytes, "
                f"this version wants {entries} of {value_bytes}; stop the VM's protection and "
                f"remove {pins}"
            )


def _size(name: str) -> int:
    return ctypes.sizeof(abi.STRUCTS[name])


def require_bpffs(bpffs: Path) -> None:
    """DatapathError unless `bpffs` is a mounted BPF file system."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "bpf" and Path(fields[1]) == bpffs:
            return
    raise DatapathError(f"{bpffs}: no BPF file system; mount -t bpf bpf {bpffs}")
