# SPDX-License-Identifier: GPL-2.0-only
"""Loaded programs of hosts that are gone, for the hosts of the next lab.

The kernel takes some ten seconds of a processor to verify the programs of a host, and half of the
time of all labs went there. Here a BPF file system outlives its host. Its maps are emptied, so that
they are as after loading; the next daemon of that configuration finds its programs loaded, as one
that starts again does. The first hosts of a test run load theirs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from colo_ebpf.config.reading import load_config
from colo_ebpf.control import settings
from colo_ebpf.datapath.bpf import loader, pinned_programs, syscalls
from colo_ebpf.datapath.bpf.loader import Sizes
from colo_ebpf.datapath.bpf.ringbuf import Ring
from colo_ebpf.datapath.net import tcx
from colo_ebpf.datapath.net.tunnel import Security
from colo_ebpf.lab import mounts
from colo_ebpf.lab.topology import Place

_ROOT = Path("/run/colot-planes")
_MOST = 2  # of one configuration, those of the two hosts of a lab


class Planes:
    """A `Keeper`, of one process."""

    def __init__(self) -> None:
        self._root = _ROOT / str(os.getpid())
        self._kept: dict[str, list[Path]] = defaultdict(list)
        self._number = 0

    def lend(self, place: Place) -> None:
        """Let the host, which has loaded nothing, have what is kept for its configuration."""
        spec = settings.plane_spec(load_config(place.config), security=Security.NONE)
        self.lend_to(place.bpffs, place.name, spec.sizes)

    def lend_to(self, bpffs: Path, vm: str, sizes: Sizes) -> None:
        """Let a BPF file system, which is empty, have what is kept for these sizes."""
        name = pinned_programs.name_of(loader.shipped(sizes))
        if not self._kept[name]:
            return
        kept = self._kept[name].pop()
        mounts.unmount(bpffs)
        mounts.bind(kept, bpffs)
        mounts.unmount(kept)
        kept.rmdir()
        (found,) = _vms(bpffs)
        found.rename(loader.pin_directory(bpffs, vm))

    def take_back(self, place: Place) -> None:
        """All that ran on the host has ended: keep what its BPF file system has."""
        self.keep(place.bpffs)

    def keep(self, bpffs: Path) -> None:
        """The same, of any BPF file system."""
        vms = _vms(bpffs) if bpffs in mounts.mounted(bpffs) else []
        codes = list(vms[0].glob("code_*")) if len(vms) == 1 else []
        if len(codes) != 1 or len(self._kept[codes[0].name]) == _MOST:
            return
        _empty(vms[0], codes[0])
        self._number += 1
        kept = self._root / str(self._number)
        mounts.bind(bpffs, kept)
        self._kept[codes[0].name].append(kept)

    def close(self) -> None:
        """Nothing is kept any more."""
        self._kept.clear()
        mounts.remove(self._root, _ROOT)


def _vms(bpffs: Path) -> list[Path]:
    """Directories of pins, one for each VM."""
    return list(bpffs.glob("colo_ebpf/v*/*"))


def _empty(vm: Path, code: Path) -> None:
    """Attached is nothing any more; the maps are as after loading."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(vm / tcx.DIRECTORY)
    for path in vm.iterdir():
        if path.is_file():
            _with(path, lambda fd: syscalls.RawMap(fd).clear())
    _with(code / "colo_ring", _read_all)


def _read_all(fd: int) -> None:
    ring = Ring(fd, lambda record: None)
    ring.consume()
    ring.close()


def _with(path: Path, do: Callable[[int], None]) -> None:
    fd = syscalls.obj_get(str(path))
    try:
        do(fd)
    finally:
        os.close(fd)
