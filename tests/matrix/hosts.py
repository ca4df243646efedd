# SPDX-License-Identifier: GPL-2.0-only
"""What a host of the matrix has for itself: a file system, disks that can fail, a wall clock."""

from __future__ import annotations

import contextlib
import struct
import subprocess
from pathlib import Path

from colo_ebpf.lab import mounts, processes
from colo_ebpf.lab.guest import BUILT
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import Place
from tests.capabilities import ROOT

_SOURCES = [Path(__file__).with_name("host.c"), ROOT / "guest" / "lab-tcg" / "tcg_dirty.c"]
_STATE = struct.Struct("<qq")  # seconds ahead, disks fail: host.c
_STORE_BYTES = 192 << 20
_PAGE_BYTES = 4096
_MARGIN_BYTES = 16 << 10  # what is written while it is filled


def prepare(lab: Lab, place: Place) -> None:
    """Before the host's daemon is started."""
    store = _store(place)
    mounts.mount_memory(store, _STORE_BYTES)
    with _image(place).open("wb") as image:
        image.truncate(place.disk.stat().st_size)
    place.disk.unlink()
    library = place.directory / "host.so"
    compiler = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    compiler += ["-o", str(library), *map(str, _SOURCES), "-ldl"]
    subprocess.run(compiler, check=True, timeout=60)
    moved = {
        f'"{place.disk}"': f'"{_image(place)}"',
        f'"{place.directory / "overlay"}"': f'"{store / "overlay"}"',
        f'"{BUILT / "libtcgdirty.so"}"': f'"{library}"',  # the same and more
    }
    text = place.config.read_text()
    for old, new in moved.items():
        assert old in text, f"{place.config} has no {old}"
        text = text.replace(old, new)
    place.config.write_text(text)
    _state(place).write_bytes(_STATE.pack(0, 0))
    lab.environment[place.host] = {
        "LD_PRELOAD": str(library),
        "COLO_TEST_HOST": str(_state(place)),
    }


def step_clock(place: Place, ahead_s: int) -> None:
    """Set the host's wall clock so many seconds ahead of the machine's."""
    _change(place, ahead_s, 0)


def fail(place: Place) -> None:
    """Each write to an image or an overlay is answered with EIO."""
    _change(place, 0, 1)


def repair(place: Place) -> None:
    """None is any more."""
    _change(place, 0, 0)


def _change(place: Place, ahead_s: int, disk_fails: int) -> None:
    for pid in processes.pids_of(place.namespace, "host"):
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert str(_state(place)) in maps, f"{processes.command_of(pid)} does not look at it"
    with _state(place).open("r+b") as file:
        file.write(_STATE.pack(ahead_s, disk_fails))


def fill(place: Place) -> None:
    """No room on the file system of its disks: neither for overlays nor for those parts of the
    image that the guest has not written to yet. They become holes: a mirror leaves none."""
    image = _image(place)
    written_bytes = len(image.read_bytes().rstrip(b"\0"))
    begin = (written_bytes + _MARGIN_BYTES) // _PAGE_BYTES * _PAGE_BYTES
    size = str(image.stat().st_size - begin)
    words = ["fallocate", "--punch-hole", "--offset", str(begin), "--length", size, str(image)]
    subprocess.run(words, check=True, timeout=60)
    with contextlib.suppress(OSError), _filler(place).open("wb", buffering=0) as file:
        while True:
            file.write(bytes(_PAGE_BYTES))


def empty(place: Place) -> None:
    """There is room again."""
    _filler(place).unlink(missing_ok=True)


def _store(place: Place) -> Path:
    return place.directory / "store"


def _image(place: Place) -> Path:
    return _store(place) / "disk.raw"


def _filler(place: Place) -> Path:
    return _store(place) / "filler"


def _state(place: Place) -> Path:
    return place.directory / "host"
