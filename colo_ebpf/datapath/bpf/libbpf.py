# SPDX-License-Identifier: GPL-2.0-only
"""libbpf's own calls, and the structs that they take: whoever needs them calls `library`.

Here are loading and verifying; `syscalls` has maps, programs and links, `ringbuf` the ring buffer.

Each takes the kernel's `struct` through libbpf's versioned options, so that neither a newer kernel
nor a newer libbpf changes what is meant here.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import ClassVar

from colo_ebpf.errors import DatapathError, VerifierError

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


class LinkOptions(ctypes.Structure):
    """``struct bpf_link_create_opts``, as far as it is used."""

    _fields_: ClassVar = [("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32)]


class RunOptions(ctypes.Structure):
    """``struct bpf_test_run_opts``."""

    _fields_: ClassVar = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


class MapTold(ctypes.Structure):
    """``struct bpf_map_info``, as far as it is used."""

    _fields_: ClassVar = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    ]


class ProgramTold(ctypes.Structure):
    """``struct bpf_prog_info``, as far as it is used."""

    _fields_: ClassVar = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("ifindex", ctypes.c_uint32),
        ("gpl_compatible", ctypes.c_uint32),
        ("netns_dev", ctypes.c_uint64),
        ("netns_ino", ctypes.c_uint64),
        ("nr_jited_ksyms", ctypes.c_uint32),
        ("nr_jited_func_lens", ctypes.c_uint32),
        ("jited_ksyms", ctypes.c_uint64),
        ("jited_func_lens", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("nr_func_info", ctypes.c_uint32),
        ("nr_line_info", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("jited_line_info", ctypes.c_uint64),
        ("nr_jited_line_info", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("jited_line_info_rec_size", ctypes.c_uint32),
        ("nr_prog_tags", ctypes.c_uint32),
        ("prog_tags", ctypes.c_uint64),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
        ("attach_btf_obj_id", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
    ]


class LinkTold(ctypes.Structure):
    """``struct bpf_link_info`` of a TCX link."""

    _fields_: ClassVar = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("union", ctypes.c_uint64 * 0),  # what follows is of a union, at a multiple of eight bytes
        ("tcx_ifindex", ctypes.c_uint32),
        ("tcx_attach_type", ctypes.c_uint32),
    ]


_INT, _U32, _U64, _POINTER = ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
_TAKES = {  # what each call takes; all but `ring_buffer__new` return an int, below 0: -errno
    "bpf_btf_load": (ctypes.c_char_p, ctypes.c_size_t, _POINTER),
    "bpf_map_create": (_INT, ctypes.c_char_p, _U32, _U32, _U32, _POINTER),
    "bpf_prog_load": (_INT, *(ctypes.c_char_p,) * 3, ctypes.c_size_t, _POINTER),
    "bpf_obj_get": (ctypes.c_char_p,),
    "bpf_obj_pin": (_INT, ctypes.c_char_p),
    "bpf_obj_get_info_by_fd": (_INT, _POINTER, _POINTER),
    "bpf_link_create": (_INT, _INT, _INT, _POINTER),
    "bpf_link_update": (_INT, _INT, _POINTER),
    "bpf_link_detach": (_INT,),
    "bpf_prog_query": (_INT, _INT, _U32, _POINTER, _POINTER, _POINTER),
    "bpf_prog_test_run_opts": (_INT, _POINTER),
    "bpf_enable_stats": (_INT,),
    "bpf_map_lookup_elem": (_INT, _POINTER, _POINTER),
    "bpf_map_update_elem": (_INT, _POINTER, _POINTER, _U64),
    "bpf_map_delete_elem": (_INT, _POINTER),
    "bpf_map_get_next_key": (_INT, _POINTER, _POINTER),
    "bpf_map_lookup_batch": (_INT, *(_POINTER,) * 6),
    "bpf_map_lookup_and_delete_batch": (_INT, *(_POINTER,) * 6),
    "bpf_map_update_batch": (_INT, *(_POINTER,) * 4),
    "libbpf_num_possible_cpus": (),
    "ring_buffer__new": (_INT, RECORD_TAKER, _POINTER, _POINTER),
    "ring_buffer__consume": (_POINTER,),
    "ring_buffer__free": (_POINTER,),
}


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf itself; DatapathError says which package has it."""
    try:
        loaded = ctypes.CDLL(NAME)
    except OSError as e:
        raise DatapathError(f"{NAME}: {e}; install libbpf1") from e
    for name, takes in _TAKES.items():
        getattr(loaded, name).argtypes = takes
    loaded.ring_buffer__new.restype = ctypes.c_void_p
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


def program_load(
    name: str, license_: str, code: bytes, *, btf: int, functions: Records, lines: Records
) -> int:
    """Have a sched_cls program verified; returns its descriptor. Raises VerifierError.

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
    raise VerifierError(f"{said}\n{os.strerror(-fd)}".strip())
