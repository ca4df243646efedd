# SPDX-License-Identifier: GPL-2.0-only
"""libbpf's own calls: what the kernel verifies, and what reads a ring buffer.

Each takes the kernel's `struct` through libbpf's versioned options, so that neither a newer kernel
nor a newer libbpf changes what is meant here.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import ClassVar

from colo_ebpf.errors import DatapathError

NAME = "libbpf.so.1"
RECORD_TAKER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
SCHED_CLS = 3  # enum bpf_prog_type
Records = tuple[bytes, int]  # one after the other, and the size of each
_LOG_BYTES = 0xFFFFFF  # what the kernel takes at most


class _MapOptions(ctypes.Structure):
    """``struct bpf_map_create_opts``, as far as it is used."""

    _fields_: ClassVar = [
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    ]


class _ProgramOptions(ctypes.Structure):
    """``struct bpf_prog_load_opts`` of libbpf 1.0."""

    _fields_: ClassVar = [
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_char_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_char_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf itself; DatapathError says which package has it."""
    try:
        loaded = ctypes.CDLL(NAME)
    except OSError as e:
        raise DatapathError(f"{NAME}: {e}; install libbpf1") from e
    loaded.bpf_btf_load.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
    loaded.bpf_map_create.argtypes = (
        *(ctypes.c_int, ctypes.c_char_p),
        *(ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32),
        ctypes.POINTER(_MapOptions),
    )
    loaded.bpf_prog_load.argtypes = (
        *(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p),
        *(ctypes.c_char_p, ctypes.c_size_t),
        ctypes.POINTER(_ProgramOptions),
    )
    loaded.ring_buffer__new.restype = ctypes.c_void_p
    loaded.ring_buffer__new.argtypes = (
        *(ctypes.c_int, RECORD_TAKER),
        *(ctypes.c_void_p, ctypes.c_void_p),
    )
    loaded.ring_buffer__consume.argtypes = (ctypes.c_void_p,)
    loaded.ring_buffer__free.argtypes = (ctypes.c_void_p,)
    return loaded


def found() -> str:
    """Its name, once it could be loaded; DatapathError as of `library`."""
    library()
    return NAME


def btf_load(types: bytes) -> int:
    """Hand type information to the kernel; returns its descriptor."""
    fd = int(library().bpf_btf_load(types, len(types), None))
    if fd < 0:
        raise DatapathError(f"bpf: load BTF: {os.strerror(-fd)}")
    return fd


def map_create(
    kind: int,
    name: str,
    sizes: tuple[int, int, int],
    flags: int,
    btf: tuple[int, int, int],
) -> int:
    """Make a map. `sizes`: bytes of a key and of a value, entries; `btf`: the descriptor and the
    types of key and value in it, or zeros. Returns its descriptor."""
    options = _MapOptions(ctypes.sizeof(_MapOptions), *btf, map_flags=flags)
    fd = int(library().bpf_map_create(kind, name.encode(), *sizes, ctypes.byref(options)))
    if fd < 0:
        raise DatapathError(f"bpf: make map {name}: {os.strerror(-fd)}")
    return fd


class RefusedError(DatapathError):
    """The verifier's log is the message."""


def program_load(
    name: str, license_: str, code: bytes, *, btf: int, functions: Records, lines: Records
) -> int:
    """Have a sched_cls program verified; returns its descriptor. Raises RefusedError.

    `functions` and `lines`: ``struct bpf_func_info`` and ``struct bpf_line_info`` over the types
    behind the descriptor `btf`. Other threads run meanwhile.
    """
    options = _ProgramOptions(
        sz=ctypes.sizeof(_ProgramOptions),
        prog_btf_fd=btf,
        func_info=functions[0],
        func_info_cnt=len(functions[0]) // (functions[1] or 1),
        func_info_rec_size=functions[1],
        line_info=lines[0],
        line_info_cnt=len(lines[0]) // (lines[1] or 1),
        line_info_rec_size=lines[1],
    )
    words = (SCHED_CLS, name.encode(), license_.encode(), code, len(code) // 8)
    fd = int(library().bpf_prog_load(*words, ctypes.byref(options)))
    if fd >= 0:
        return fd
    # Once more, with its log, for which the verifier takes far longer.
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options.log_level, options.log_size = 1, len(log)
    options.log_buf = ctypes.cast(log, ctypes.c_void_p)
    fd = int(library().bpf_prog_load(*words, ctypes.byref(options)))
    if fd >= 0:
        return fd
    said = log.value.decode(errors="replace").strip()
    raise RefusedError(f"{said}\n{os.strerror(-fd)}".strip())
