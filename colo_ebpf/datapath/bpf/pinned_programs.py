# SPDX-License-Identifier: GPL-2.0-only
"""Loaded programs that outlive the daemon: a directory of pins that the next daemon adopts.

`<pins>/code_<identity>` holds all programs of a VM, and those of their maps that are pinned nowhere
else. The identity is a digest of the sources, with flags, sizes and kernel, and the bcc that
compiled them. A set is made under another name and renamed when it is whole; what was loaded stays
as it was verified, so the name says everything. Nothing but opening pins is needed to adopt it: no
compiler, no headers, no privilege beyond CAP_BPF.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colo_ebpf.datapath.bpf import compiler, syscalls
from colo_ebpf.datapath.bpf.image import Source
from colo_ebpf.datapath.bpf.image_cache import distrusted
from colo_ebpf.datapath.bpf.loader import Module
from colo_ebpf.datapath.bpf.syscalls import RawMap
from colo_ebpf.datapath.net import tcx
from colo_ebpf.errors import DatapathError, LoadError

_log = logging.getLogger(__name__)
CALLS = (  # by COLO_CALL_...
    "colo_drain",
    "colo_enter",
    "colo_cmp_pvm",
    "colo_cmp_svm",
    "colo_rst_pvm",
    "colo_rst_svm",
    "colo_owe",
    "colo_long_pvm",
    "colo_long_svm",
)
_CALLS_MAP, _RING_MAP = "colo_calls", "colo_ring"
_OWN_MAPS = (_CALLS_MAP, _RING_MAP)
_EARLIER = "colo_stages"  # the table of programs, where earlier versions pinned it
_PREFIX = "code_"
_NEW, _OLD = "new_code", "old_code"


@dataclass(frozen=True, slots=True)
class Code:
    """Descriptors of all programs of a VM, and of those of its maps that are in no path of their
    own."""

    programs: dict[str, int]
    maps: dict[str, int]
    name: str  # of its directory

    def close(self) -> None:
        """What is attached or pinned lives on."""
        for fd in (*self.programs.values(), *self.maps.values()):
            os.close(fd)


def name_of(sources: Sequence[Source]) -> str:
    """The directory's name for programs of these sources; it ends with the compiler's version,
    or, where none is installed, with nothing: then a set of any is taken."""
    parts = [*(source.digest for source in sources), *CALLS]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return f"{_PREFIX}{digest}_{re.sub(r'[^0-9A-Za-z]', '_', compiler.version())}"


def adopt(pins: Path, sources: Sequence[Source], bound: Sequence[str]) -> Code | None:
    """The set of these sources, if it is there and whole.

    `bound`: the VM's pinned maps that we work with. Programs of other maps would not see what is
    written into those.
    """
    name = name_of(sources)
    found = pins / name
    if name.endswith("_"):
        found = next(iter(sorted(pins.glob(f"{name}*"))), found)
    if not found.is_dir():
        return None
    names = [program for source in sources for program in source.programs]
    opened: list[int] = []
    try:
        _trust(pins, found)
        for one in (*names, *_OWN_MAPS):
            opened.append(syscalls.obj_get(str(found / one)))
        programs = dict(zip(names, opened, strict=False))
        maps = dict(zip(_OWN_MAPS, opened[len(names) :], strict=True))
        _check(pins, programs, maps, bound)
    except DatapathError as e:
        for fd in opened:
            os.close(fd)
        _log.warning("%s: %s: the programs are made anew", found, e)
        return None
    return Code(programs, maps, found.name)


def _trust(*directories: Path) -> None:
    for one in directories:
        if why := distrusted(one.lstat()):
            raise LoadError(f"{one}: {why}")


def _check(
    pins: Path, programs: dict[str, int], maps: dict[str, int], bound: Sequence[str]
) -> None:
    infos = {name: syscalls.program_info(fd) for name, fd in programs.items()}
    used = {number for info in infos.values() for number in info.maps}
    for name, info in infos.items():
        if info.name != name:
            raise LoadError(f"{name} is {info.name or 'no program'}")
    for name in bound:
        fd = syscalls.obj_get(str(pins / name))
        try:
            number = syscalls.map_info(fd).number
        finally:
            os.close(fd)
        if number not in used:
            raise LoadError(f"the pinned {name} is not that of the programs")
    if not {syscalls.map_info(fd).number for fd in maps.values()} <= used:
        raise LoadError("maps that the programs do not use")
    calls = RawMap(maps[_CALLS_MAP])
    for place, name in enumerate(CALLS):
        called = calls.get(struct.pack("=I", place)) or b"\0" * 4
        if struct.unpack("=I", called)[0] != infos[name].number:
            raise LoadError(f"{_CALLS_MAP} does not call {name}")


def publish(pins: Path, name: str, modules: Sequence[Module]) -> Code:
    """Let the programs call each other and pin them; from the renaming on they can be adopted.

    The modules are used up.
    """
    programs = {one: fd for module in modules for one, fd in module.programs.items()}
    maps = [(one, fd) for module in modules for one, fd in module.maps.items()]
    own = {one: fd for one, fd in maps if one in _OWN_MAPS}
    calls = RawMap(own[_CALLS_MAP])
    for place, called in enumerate(CALLS):
        calls.set(struct.pack("=I", place), struct.pack("=I", programs[called]))
    fresh = pins / _NEW
    _remove(fresh)
    fresh.mkdir(mode=0o700)
    for one, fd in (*programs.items(), *own.items()):
        syscalls.obj_pin(fd, str(fresh / one))
    if (pins / name).is_dir():  # it could not be adopted, but what is attached may be of it
        _remove(pins / _OLD)
        (pins / name).rename(pins / _OLD)
    fresh.rename(pins / name)
    for one, fd in maps:
        if one not in own:
            os.close(fd)  # the programs keep it
    return Code(programs, own, name)


def clear_others(pins: Path, name: str) -> None:
    """Once nothing attached is of another set: the kernel lets go of their programs.

    Not before: the kernel empties a table of programs that no process has open and no path names,
    and the frames that complete held ones would be without the program that sends them.
    """
    for path in pins.iterdir():
        if path.is_dir() and path.name not in (name, tcx.DIRECTORY):
            _remove(path)
    (pins / _EARLIER).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """A directory of pins, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
