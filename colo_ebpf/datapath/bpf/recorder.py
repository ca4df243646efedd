# SPDX-License-Identifier: GPL-2.0-only
"""What bcc hands to the kernel is written down instead of loaded.

bcc knows no way to get at what it compiled but to load it: its type information and its line
numbers are in no call. So the calls of bpf(2) of the thread that compiles are answered by another
thread of this process (seccomp's user notification, through libseccomp): the kernel sees none of
them. Nothing is made and no privilege is needed. For the process that compiles (`compiler`): there
is no way back.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec

from colo_ebpf.datapath.bpf.image import Image, MapDefinition, Program, unbound
from colo_ebpf.datapath.bpf.libbpf import SCHED_CLS
from colo_ebpf.errors import LoadError

_LIBRARY = "libseccomp.so.2"
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_MAP_CREATE, _PROG_LOAD, _BTF_LOAD = 0, 5, 18
_ATTR_BYTES = 144
_EINVAL = 22


class _Call(ctypes.Structure):
    """``struct seccomp_notif``."""

    _fields_: ClassVar = [
        ("id", ctypes.c_uint64),
        ("pid", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("number", ctypes.c_int),
        ("arch", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
    ]


class _Answer(ctypes.Structure):
    """``struct seccomp_notif_resp``."""

    _fields_: ClassVar = [
        ("id", ctypes.c_uint64),
        ("value", ctypes.c_int64),
        ("error", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
    ]


def _libseccomp() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as e:
        raise LoadError(f"{_LIBRARY}: {e}; install libseccomp2") from e
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_rule_add.argtypes = (
        *(ctypes.c_void_p, ctypes.c_uint32),
        *(ctypes.c_int, ctypes.c_uint),
    )
    library.seccomp_load.argtypes = library.seccomp_notify_fd.argtypes = (ctypes.c_void_p,)
    pointers = ctypes.POINTER(ctypes.POINTER(_Call)), ctypes.POINTER(ctypes.POINTER(_Answer))
    library.seccomp_notify_alloc.argtypes = pointers
    library.seccomp_notify_receive.argtypes = (ctypes.c_int, ctypes.POINTER(_Call))
    library.seccomp_notify_respond.argtypes = (ctypes.c_int, ctypes.POINTER(_Answer))
    return library


@dataclass(slots=True)
class _Loaded:
    """One BPF_PROG_LOAD."""

    license: str
    code: bytes
    functions: tuple[bytes, int]
    lines: tuple[bytes, int]
    types: int


@dataclass(slots=True)
class Record:
    """The calls so far."""

    types: dict[int, bytes] = field(default_factory=dict)  # by descriptor
    maps: dict[int, tuple[MapDefinition, int]] = field(default_factory=dict)  # with their BTF's
    programs: dict[str, _Loaded] = field(default_factory=dict)

    def image(self, source: str, names: list[str], pinned: set[str]) -> Image:
        """Of the programs of these names. LoadError if one was not loaded."""
        missing = [name for name in names if name not in self.programs]
        if missing:
            raise LoadError(f"{source}: bcc did not load {', '.join(missing)}")
        chosen = [self.programs[name] for name in names]
        used = {one.types for one in chosen} | {btf for _, btf in self.maps.values() if btf}
        if len(used) > 1:
            raise LoadError(f"{source}: bcc made its types more than once")
        numbers = {fd: number for number, fd in enumerate(self.maps)}
        programs = []
        for name, one in zip(names, chosen, strict=True):
            code, maps = unbound(one.code, numbers)
            programs.append(Program(name, code, maps, one.functions, one.lines))
        return Image(
            source=source,
            license=chosen[0].license,
            types=self.types.get(used.pop(), b""),
            maps=tuple(
                msgspec.structs.replace(made, pinned=made.name in pinned)
                for made, _ in self.maps.values()
            ),
            programs=tuple(programs),
        )

    def take(self, command: int, attr: bytes) -> int:
        """One call; returns what it is answered with: a descriptor, or minus an error."""
        if command == _MAP_CREATE:
            fd = _descriptor()
            self.maps[fd] = _map(attr)
        elif command == _BTF_LOAD:
            fd = _descriptor()
            self.types[fd] = _memory(*struct.unpack_from("<Q8xI", attr))
        elif command == _PROG_LOAD:
            fd = _descriptor()
            if struct.unpack_from("<I", attr)[0] == SCHED_CLS:  # libbpf tries others, of its own
                self.programs[_text(attr[48:64])] = _program(attr)
        else:
            fd = -_EINVAL
        return fd


def _descriptor() -> int:
    """bcc closes it again."""
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _memory(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size) if size else b""


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode()


def _map(attr: bytes) -> tuple[MapDefinition, int]:
    kind, key, value, entries, flags = struct.unpack_from("<5I", attr)
    btf, key_type, value_type = struct.unpack_from("<3I", attr, 48)
    name = _text(attr[28:44])
    return MapDefinition(name, kind, key, value, entries, flags, key_type, value_type, False), btf


def _program(attr: bytes) -> _Loaded:
    count, code, license_ = struct.unpack_from("<IQQ", attr, 4)
    types, *infos = struct.unpack_from("<IIQIIQI", attr, 72)
    functions, lines = (
        (_memory(address, size * n), size) for size, address, n in (infos[:3], infos[3:])
    )
    said = ctypes.string_at(license_).decode()
    return _Loaded(said, _memory(code, 8 * count), functions, lines, types)


def record_calls() -> Record:
    """From here on no bpf(2) of this thread reaches the kernel. LoadError if that cannot be had."""
    library, record = _libseccomp(), Record()
    context = library.seccomp_init(_ALLOW)
    number = library.seccomp_syscall_resolve_name(b"bpf")
    if not context or library.seccomp_rule_add(context, _NOTIFY, number, 0):
        raise LoadError(f"{_LIBRARY}: knows no user notification; install 2.5 or newer")
    listening, fds = threading.Event(), [-1]

    def answer() -> None:
        listening.wait()
        _answer_all(library, fds[0], record)

    threading.Thread(target=answer, daemon=True).start()  # before: it is not held to the rule
    failed = library.seccomp_load(context)
    if failed:
        raise LoadError(
            f"seccomp: user notification: {os.strerror(-failed)}: what runs this container or "
            "service may use it itself; compile outside of it once, and what was compiled is kept"
        )
    fds[0] = library.seccomp_notify_fd(context)
    listening.set()
    return record


def _answer_all(library: ctypes.CDLL, fd: int, record: Record) -> None:
    call, answer = ctypes.POINTER(_Call)(), ctypes.POINTER(_Answer)()
    library.seccomp_notify_alloc(ctypes.byref(call), ctypes.byref(answer))
    try:
        while True:
            ctypes.memset(call, 0, ctypes.sizeof(_Call))
            if library.seccomp_notify_receive(fd, call):
                continue  # the call was interrupted
            args = call.contents.args
            attr = _memory(args[1], args[2]).ljust(_ATTR_BYTES, b"\0")
            said = record.take(args[0], attr)
            answer.contents.id, answer.contents.flags = call.contents.id, 0
            answer.contents.value, answer.contents.error = max(said, 0), min(said, 0)
            library.seccomp_notify_respond(fd, answer)
    finally:
        os.close(fd)  # the calls that wait fail
