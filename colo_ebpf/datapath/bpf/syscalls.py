# SPDX-License-Identifier: GPL-2.0-only
"""Maps, programs and links by their descriptors, through libbpf's own calls.

bcc 0.26 has no binding for these. libbpf fills ``union bpf_attr`` for the kernel; nothing here does
so by hand. (An array's word read through libbpf takes as long as by a bare system call: 6 to 11 us
and 7 to 12 us, in turns, on a virtual machine with a slow system call.) Source: ``bpf/bpf.h`` of
libbpf 1.1, ``include/uapi/linux/bpf.h``. Every failure is a DatapathError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from colo_ebpf.datapath.bpf import libbpf
from colo_ebpf.errors import DatapathError

_CONTEXT_BYTES = 512  # more than a struct __sk_buff has
_MOST_MAPS = 64  # a program may use
_ARRAYS = (2, 6)  # BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY
_PER_CPU = (5, 6, 10)  # BPF_MAP_TYPE_PERCPU_HASH, ..._PERCPU_ARRAY, ..._LRU_PERCPU_HASH
_TAKEN_AT_ONCE = 4096
_MOST_PROGRAMS = 64  # BPF_MPROG_MAX: on one hook
_GROWN_BYTES = 1 << 14  # no program makes a frame larger; the kernel refuses a run that did
_RUN_TIME = 0  # enum bpf_stats_type


def _done(result: int, what: str) -> int:
    """What libbpf has returned; DatapathError if that is an error."""
    if result < 0:
        text = os.strerror(-result)
        raise DatapathError(f"bpf: {what}: {text}") from OSError(-result, text)
    return result


@dataclass(frozen=True, slots=True)
class MapInfo:
    """Layout of a map as the kernel has it."""

    type: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    name: str
    flags: int
    number: int  # the kernel's id


@dataclass(frozen=True, slots=True)
class TestRun:
    """Outcome of BPF_PROG_TEST_RUN."""

    retval: int
    data_out: bytes
    duration_ns: int
    context: bytes  # a struct __sk_buff; empty if none was given


def obj_get(path: str) -> int:
    """Open a pinned map or program; returns its file descriptor."""
    return _done(libbpf.library().bpf_obj_get(path.encode()), f"open pinned object {path}")


def obj_pin(fd: int, path: str) -> None:
    """Pin a map or program; the path must not exist."""
    _done(libbpf.library().bpf_obj_pin(fd, path.encode()), f"pin {path}")


def _tell(fd: int, info: ctypes.Structure, what: str) -> None:
    """Have the kernel fill `info`: of a map, a program or a link."""
    size = ctypes.c_uint32(ctypes.sizeof(info))
    call = libbpf.library().bpf_obj_get_info_by_fd
    _done(call(fd, ctypes.byref(info), ctypes.byref(size)), what)


def map_info(fd: int) -> MapInfo:
    """Layout of the map behind `fd`."""
    told = libbpf.MapTold()
    _tell(fd, told, "map info")
    return MapInfo(
        told.type,
        told.key_size,
        told.value_size,
        told.max_entries,
        told.name.decode(),
        told.map_flags,
        told.id,
    )


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a loaded program (struct bpf_prog_info)."""

    name: str
    jited_bytes: int
    translated_bytes: int  # eight to an instruction
    verified: int  # instructions the verifier looked at
    run_time_ns: int  # while `run_time_kept`; a program that others call counts for its caller
    runs: int
    number: int  # the kernel's id
    maps: tuple[int, ...]  # ids of those it uses


def program_info(fd: int) -> ProgramInfo:
    """Sizes, run time and maps of the program behind `fd`."""
    ids = (ctypes.c_uint32 * _MOST_MAPS)()
    told = libbpf.ProgramTold(nr_map_ids=_MOST_MAPS, map_ids=ctypes.addressof(ids))
    _tell(fd, told, "program info")
    return ProgramInfo(
        name=told.name.decode(),
        jited_bytes=told.jited_prog_len,
        translated_bytes=told.xlated_prog_len,
        verified=told.verified_insns,
        run_time_ns=told.run_time_ns,
        runs=told.run_cnt,
        number=told.id,
        maps=tuple(ids[: min(told.nr_map_ids, _MOST_MAPS)]),
    )


def link_create(program: int, ifindex: int, attach_type: int, flags: int) -> int:
    """Attach a program to a hook of a device; what holds it is the descriptor returned."""
    options = libbpf.LinkOptions(sz=ctypes.sizeof(libbpf.LinkOptions), flags=flags)
    call = libbpf.library().bpf_link_create
    return _done(call(program, ifindex, attach_type, ctypes.byref(options)), "make link")


def link_update(link: int, program: int) -> None:
    """Another program in its place, in one step. ENOLINK: its device is gone."""
    _done(libbpf.library().bpf_link_update(link, program, None), "update link")


def link_detach(link: int) -> None:
    """The program is taken off, whoever else has the link open."""
    _done(libbpf.library().bpf_link_detach(link), "detach link")


def link_ifindex(link: int) -> int:
    """The device of a TCX link; 0: it is gone, or the link was detached."""
    told = libbpf.LinkTold()
    _tell(link, told, "link info")
    return int(told.tcx_ifindex)


def programs_at(ifindex: int, attach_type: int) -> tuple[int, ...]:
    """The kernel's ids of the programs on a TCX hook, in the order they run."""
    ids = (ctypes.c_uint32 * _MOST_PROGRAMS)()
    count = ctypes.c_uint32(len(ids))
    call = libbpf.library().bpf_prog_query
    result = call(ifindex, attach_type, 0, None, ctypes.byref(ids), ctypes.byref(count))
    _done(result, "programs of a device")
    return tuple(ids[: count.value])


@contextlib.contextmanager
def run_time_kept() -> Iterator[None]:
    """The kernel keeps the run time of programs meanwhile, as with sysctl kernel.bpf_stats_enabled.

    It ends with the descriptor: nothing has to be set back, whatever becomes of this process.
    """
    fd = _done(libbpf.library().bpf_enable_stats(_RUN_TIME), "keep run times")
    try:
        yield
    finally:
        os.close(fd)


class RawMap:
    """A map by its descriptor; keys and values are bytes.

    A value of a per-CPU map is that of all CPUs in a row, each at a multiple of eight bytes.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.info = map_info(fd)
        self._lib = libbpf.library()
        self.cpus = 1  # values of an entry
        self._value_bytes = self.info.value_bytes
        if self.info.type in _PER_CPU:
            self.cpus = _done(self._lib.libbpf_num_possible_cpus(), "count the CPUs")
            self._value_bytes = -(-self._value_bytes // 8) * 8 * self.cpus

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        value = ctypes.create_string_buffer(self._value_bytes)
        result = self._lib.bpf_map_lookup_elem(self.fd, key, value)
        return value.raw if self._there(result, f"look up in {self.info.name}") else None

    def set(self, key: bytes, value: bytes) -> None:
        """Write one entry."""
        result = self._lib.bpf_map_update_elem(self.fd, key, value, 0)
        _done(result, f"update {self.info.name}")

    def all(self) -> bytes:
        """All values of an array map in index order, in one call."""
        count = ctypes.c_uint32(self.info.max_entries)
        keys = ctypes.create_string_buffer(4 * count.value)
        values = ctypes.create_string_buffer(self._value_bytes * count.value)
        place = ctypes.create_string_buffer(8)
        call = self._lib.bpf_map_lookup_batch
        result = call(self.fd, None, place, keys, values, ctypes.byref(count), None)
        self._there(result, f"read {self.info.name}")  # not there: the end was reached
        return values.raw

    @staticmethod
    def _there(result: int, what: str) -> bool:
        """False: no such entry, or none that follows."""
        if result == -errno.ENOENT:
            return False
        _done(result, what)
        return True

    def clear(self) -> None:
        """As after loading: an array's values are zero, a hash map has no entries.

        Entries that are made meanwhile may stay.
        """
        if self.info.type in _ARRAYS:
            self._zero()
        else:
            self._take_all()

    def _zero(self) -> None:
        entries = self.info.max_entries
        keys = struct.pack(f"={entries}I", *range(entries))
        values = ctypes.create_string_buffer(-(-self._value_bytes // 8) * 8 * entries)
        count = ctypes.c_uint32(entries)
        call = self._lib.bpf_map_update_batch
        result = call(self.fd, keys, values, ctypes.byref(count), None)
        _done(result, f"clear {self.info.name}")

    def _take_all(self) -> None:
        keys = ctypes.create_string_buffer(self.info.key_bytes * _TAKEN_AT_ONCE)
        values = ctypes.create_string_buffer(self._value_bytes * _TAKEN_AT_ONCE)
        place = ctypes.create_string_buffer(8)  # a bucket's number
        call, start = self._lib.bpf_map_lookup_and_delete_batch, None
        more = True
        while more:
            count = ctypes.c_uint32(_TAKEN_AT_ONCE)
            result = call(self.fd, start, place, keys, values, ctypes.byref(count), None)
            more = self._there(result, f"clear {self.info.name}")
            start = place

    def delete(self, key: bytes) -> None:
        """Remove one entry, which may be gone already."""
        self._there(self._lib.bpf_map_delete_elem(self.fd, key), "delete")

    def next_key(self, key: bytes | None) -> bytes | None:
        """The key after `key` in the map's own order; the first one if that is gone or None."""
        following = ctypes.create_string_buffer(self.info.key_bytes)
        result = self._lib.bpf_map_get_next_key(self.fd, key, following)
        return following.raw if self._there(result, "next key") else None

    def keys(self) -> Iterator[bytes]:
        """Walk the keys; entries that come and go meanwhile may be missed or seen twice."""
        key: bytes | None = None
        for _ in range(self.info.max_entries + 1):
            key = self.next_key(key)
            if key is None:
                return
            yield key


def mapped(fd: int) -> memoryview:
    """The values of an array map made with BPF_F_MMAPABLE, as 64-bit words, read-only.

    They change under the reader, each word as a whole.
    """
    info = map_info(fd)
    size = info.value_bytes * info.max_entries
    try:
        return memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ)).cast("Q")
    except OSError as e:
        raise DatapathError(f"bpf: map {info.name} into memory: {e.strerror}") from e


class ArrayWord:
    """A 64-bit entry of an array map that is read many times a second: nothing is allocated.

    For one thread only.
    """

    def __init__(self, fd: int, index: int) -> None:
        self._key, self._value = ctypes.c_uint32(index), ctypes.c_uint64(0)
        self._call = libbpf.library().bpf_map_lookup_elem
        self._words = (fd, ctypes.byref(self._key), ctypes.byref(self._value))

    def get(self) -> int:
        """Its value now."""
        result = self._call(*self._words)
        if result < 0:
            _done(result, "look up in an array")
        return self._value.value


def _run(fd: int, options: libbpf.RunOptions) -> None:
    call = libbpf.library().bpf_prog_test_run_opts
    _done(call(fd, ctypes.byref(options)), "test run")


def _given(data: Any) -> dict[str, Any]:
    """The frame of a run. Whoever calls keeps `data` until the run is over."""
    size = ctypes.sizeof(libbpf.RunOptions)
    return {"sz": size, "data_in": ctypes.addressof(data), "data_size_in": len(data)}


def test_run(fd: int, data: bytes, repeat: int = 1, context: bytes = b"") -> TestRun:
    """Run a sched_cls program on a frame (BPF_PROG_TEST_RUN); `data` is 14 bytes or more.

    `context`: a struct __sk_buff; of its fields the kernel takes mark, priority, ifindex and cb,
    and tells what the program made of them.
    """
    frame = ctypes.create_string_buffer(data, len(data))
    out = ctypes.create_string_buffer(len(data) + _GROWN_BYTES)
    options = libbpf.RunOptions(**_given(frame), repeat=repeat)
    options.data_out, options.data_size_out = ctypes.addressof(out), len(out)
    given = ctypes.create_string_buffer(context, len(context))
    told = ctypes.create_string_buffer(_CONTEXT_BYTES)
    if context:
        options.ctx_in, options.ctx_size_in = ctypes.addressof(given), len(given)
        options.ctx_out, options.ctx_size_out = ctypes.addressof(told), len(told)
    _run(fd, options)
    left = out.raw[: min(options.data_size_out, len(out))]
    return TestRun(options.retval, left, options.duration, told.raw if context else b"")


class Runner:
    """Like `test_run`, fast, for frames of one length whose verdict the counters tell."""

    def __init__(self, fd: int, frame: bytes, context: bytes = b"", repeat: int = 1) -> None:
        self._fd = fd
        self._frame = ctypes.create_string_buffer(frame, len(frame))
        self._context = ctypes.create_string_buffer(context, len(context))
        self._options = libbpf.RunOptions(**_given(self._frame), repeat=repeat)
        if context:
            self._options.ctx_in = ctypes.addressof(self._context)
            self._options.ctx_size_in = len(context)

    def put(self, frame: bytes) -> None:
        """The next frame, or how it begins: all are as long as the first."""
        ctypes.memmove(self._frame, frame, len(frame))

    def run(self, repeat: int = 0) -> int:
        """Run it so often (0: as often as before); returns ns each run took, with what the kernel
        did between them."""
        if repeat:
            self._options.repeat = repeat
        _run(self._fd, self._options)
        return int(self._options.duration)
