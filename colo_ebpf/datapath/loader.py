# SPDX-License-Identifier: GPL-2.0-only
"""The BPF sources, compiled and loaded, bound to the pinned maps of one VM."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from colo_ebpf.datapath import abi, compiler, sysbpf
from colo_ebpf.errors import DatapathError, LoadError

_STAGES = (  # by COLO_STAGE_...
    "colo_drain",
    "colo_enter",
    "colo_cmp_pvm",
    "colo_cmp_svm",
    "colo_rst_pvm",
    "colo_rst_svm",
)
PROGRAMS = {
    "compare.c": (
        "colo_cmp_pvm",
        "colo_cmp_svm",
        "colo_drain",
        "colo_enter",
        "colo_flush",
        "colo_park",
        "colo_rst_pvm",
        "colo_rst_svm",
    ),
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


_MAPS = ("colo_stages", "colo_ring")
_FDS_MAX = 32
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
    """A loaded source: descriptors of its programs, and of those of its maps that have no pin."""

    programs: dict[str, int]
    maps: dict[str, int]
    load_s: float  # to compile it and have it verified

    def close(self) -> None:
        """What is attached or pinned lives on."""
        for fd in (*self.programs.values(), *self.maps.values()):
            os.close(fd)


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


class Compiler:
    """The process that compiles (see `compiler`), for as long as the block lasts."""

    def __enter__(self) -> Compiler:
        self._end, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "colo_ebpf.datapath.compiler", str(other.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
            )
        return self

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        self._end.close()
        self._process.wait()

    def load(
        self,
        source: Path,
        names: tuple[str, ...],
        pins: Path,
        sizes: Sizes,
        cache: Path,
        *,
        maps: tuple[str, ...] = _MAPS,
    ) -> Module:
        """Compile `source` and load the named programs; LoadError carries the log."""
        request = compiler.Request(
            source=str(source),
            include=str(source_directory() / "include"),
            flags=_flags(pins, sizes),
            programs=list(names),
            maps=list(maps),
            stages=list(_STAGES),
            cache=str(cache),
        )
        start = time.monotonic()
        data: bytes = b""
        fds: list[int] = []
        with contextlib.suppress(ConnectionError):
            self._end.send(msgspec.json.encode(request))
            data, fds, _, _ = socket.recv_fds(self._end, compiler.REQUEST_MAX_BYTES, _FDS_MAX)
        if not data:
            raise LoadError(f"{source.name}: the compiler ended with {self._process.wait()}")
        answer = msgspec.json.decode(data, type=compiler.Answer)
        if answer.error:
            raise LoadError(answer.error)
        return Module(
            dict(zip(names, fds[: len(names)], strict=True)),
            dict(zip(answer.maps, fds[len(names) :], strict=True)),
            time.monotonic() - start,
        )


def _flags(pins: Path, sizes: Sizes) -> list[str]:
    return [
        f'-DCOLO_PIN="{pins}"',
        f"-DCOLO_FLOWS={sizes.flows}",
        f"-DCOLO_HOLD_SLOTS={sizes.hold_slots}",
        f"-DCOLO_DGRAM_BUCKETS={sizes.dgram_buckets}",
        f"-DCOLO_FRAME_MAX={sizes.frame_bytes}",
        f"-DCOLO_CPUS={os.sysconf('SC_NPROCESSORS_CONF')}",
        "-Wno-macro-redefined",
    ]


def keep_stages(module: Module, pins: Path) -> None:
    """Pin what the attached programs call, in place of what their predecessors called.

    The kernel empties a table of programs that no process has open and no path names: a daemon
    that died would leave the frames that complete held ones without the program that sends them.
    """
    fresh = pins / "colo_stages_new"
    fresh.unlink(missing_ok=True)
    sysbpf.obj_pin(module.maps["colo_stages"], str(fresh))
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
