# SPDX-License-Identifier: GPL-2.0-only
"""What a host of the matrix has for itself: a file system, disks that can fail, a wall clock."""

from __future__ import annotations

import contextlib
import errno
import struct
import subprocess
from pathlib import Path

from colo_ebpf.config.reading import load_config
from colo_ebpf.lab import mounts, processes
from colo_ebpf.lab.guest import BUILT
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import LINK, Place
from tests.capabilities import ROOT

_SOURCES = [Path(__file__).with_name("host.c"), ROOT / "guest" / "lab-tcg" / "tcg_dirty.c"]
_STATE = struct.Struct("<qqqq")  # seconds ahead, disks fail, directories fail, how: host.c
_STORE_BYTES = 192 << 20
_FILES_BYTES = 4 << 20
_TABLE = "colotest"
_FILLER = "filler"
_PAGE_BYTES = 4096
_MARGIN_BYTES = 16 << 10  # what is written while it is filled


def prepare(lab: Lab, place: Place) -> None:
    """Before the host's daemon is started."""
    for directory in directories(place).values():
        mounts.mount_memory(directory, _FILES_BYTES)
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
    _state(place).write_bytes(_STATE.pack(0, 0, 0, 0))
    state, run = directories(place).values()
    lab.environment[place.host] = {
        "LD_PRELOAD": str(library),
        "COLO_TEST_HOST": str(_state(place)),
        "COLO_TEST_DIR1": str(state),
        "COLO_TEST_DIR2": str(run),
    }


def directories(place: Place) -> dict[str, Path]:
    """Where the daemon and its QEMU keep their files, each a file system of its own."""
    return {"state": place.directory / "state", "run": place.run_dir}


def fill_directory(place: Place, which: str) -> None:
    """No room is left in `state` or `run`."""
    _fill(directories(place)[which] / _FILLER)


def freeze_directory(place: Place, which: str) -> None:
    """It can be read only. (A remount is refused while QEMU has its log open.)"""
    _refuse(place, which, errno.EROFS)


def break_directory(place: Place, which: str) -> None:
    """Whatever would change something there is answered with EIO."""
    _refuse(place, which, errno.EIO)


def _refuse(place: Place, which: str, number: int) -> None:
    _change(place, 0, 0, 1 + [*directories(place)].index(which), number)


def mend_directory(place: Place, which: str) -> None:
    """All is as it was."""
    (directories(place)[which] / _FILLER).unlink(missing_ok=True)
    _change(place, 0, 0)


def step_clock(place: Place, ahead_s: int) -> None:
    """Set the host's wall clock so many seconds ahead of the machine's."""
    _change(place, ahead_s, 0)


def fail(place: Place) -> None:
    """Each write to an image or an overlay is answered with EIO."""
    _change(place, 0, 1)


def repair(place: Place) -> None:
    """None is any more."""
    _change(place, 0, 0)


def _change(
    place: Place, ahead_s: int, disk_fails: int, files_fail: int = 0, number: int = 0
) -> None:
    for pid in processes.pids_of(place.namespace, "host"):
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert str(_state(place)) in maps, f"{processes.command_of(pid)} does not look at it"
    with _state(place).open("r+b") as file:
        file.write(_STATE.pack(ahead_s, disk_fails, files_fail, number))


def block(place: Place, protocol: str, port: str) -> None:
    """A firewall's rule: nothing to or from this port, of [link], comes in over the link."""
    number = getattr(load_config(place.config).link, port)
    chain = f"add chain inet {_TABLE} in {{ type filter hook input priority 0; }}"
    rules = [f"add table inet {_TABLE}", chain]
    for side in ("dport", "sport"):
        rules.append(f'add rule inet {_TABLE} in iifname "{LINK}" {protocol} {side} {number} drop')
    _nft(place, "; ".join(rules))


def unblock(place: Place) -> None:
    """The firewall has no rule any more."""
    _nft(place, f"delete table inet {_TABLE}")


def _nft(place: Place, rules: str) -> None:
    inside = ["nsenter", f"--net=/run/netns/{place.namespace}", "nft", rules]
    subprocess.run(inside, check=True, timeout=60)


def fill(place: Place) -> None:
    """No room on the file system of its disks: neither for overlays nor for those parts of the
    image that the guest has not written to yet. They become holes: a mirror leaves none."""
    image = _image(place)
    written_bytes = len(image.read_bytes().rstrip(b"\0"))
    begin = (written_bytes + _MARGIN_BYTES) // _PAGE_BYTES * _PAGE_BYTES
    size = str(image.stat().st_size - begin)
    words = ["fallocate", "--punch-hole", "--offset", str(begin), "--length", size, str(image)]
    subprocess.run(words, check=True, timeout=60)
    _fill(_filler(place))


def _fill(filler: Path) -> None:
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
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
    return _store(place) / _FILLER


def _state(place: Place) -> Path:
    return place.directory / "host"
