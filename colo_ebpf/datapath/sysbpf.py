# SPDX-License-Identifier: GPL-2.0-only
"""The few commands of bpf(2) that bcc 0.26 has no binding for, through ctypes.

Source: ``man 2 bpf`` and ``include/uapi/linux/bpf.h``. Every failure is a DatapathError.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from colo_ebpf.errors import DatapathError

_NR_BPF = 321 if os.uname().machine == "x86_64" else 280
_CONTEXT_BYTES = 512  # more than a struct __sk_buff has
_ATTR_BYTES = 144
_PROGRAM_INFO_BYTES = 232
_MOST_MAPS = 64  # a program may use

_MAP_LOOKUP = 1
_MAP_UPDATE = 2
_MAP_DELETE = 3
_MAP_GET_NEXT_KEY = 4
_PROG_TEST_RUN = 10
_OBJ_PIN = 6
_OBJ_GET = 7
_OBJ_GET_INFO = 15
_MAP_LOOKUP_BATCH = 24
_MAP_TAKE_BATCH = 25
_MAP_UPDATE_BATCH = 26
_ENABLE_STATS = 32
_ARRAYS = (2, 6)  # BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY
_TAKEN_AT_ONCE = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attr: bytes, what: str) -> tuple[int, bytes]:
    buffer = ctypes.create_string_buffer(attr, _ATTR_BYTES)
    result = _libc.syscall(_NR_BPF, command, buffer, _ATTR_BYTES)
    if result < 0:
        error = ctypes.get_errno()
        raise DatapathError(f"bpf: {what}: {os.strerror(error)}") from OSError(error, what)
    return result, buffer.raw


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
    name = ctypes.create_string_buffer(path.encode())
    attr = struct.pack("<QII", ctypes.addressof(name), 0, 0)
    return _bpf(_OBJ_GET, attr, f"open pinned object {path}")[0]


def obj_pin(fd: int, path: str) -> None:
    """Pin a map or program; the path must not exist."""
    name = ctypes.create_string_buffer(path.encode())
    _bpf(_OBJ_PIN, struct.pack("<QII", ctypes.addressof(name), fd, 0), f"pin {path}")


def map_info(fd: int) -> MapInfo:
    """Layout of the map behind `fd` (struct bpf_map_info)."""
    info = ctypes.create_string_buffer(128)
    attr = struct.pack("<IIQ", fd, len(info), ctypes.addressof(info))
    _bpf(_OBJ_GET_INFO, attr, "map info")
    kind, number, key, value, entries, flags = struct.unpack_from("<6I", info.raw)
    name = info.raw[24:40].split(b"\0")[0].decode()
    return MapInfo(kind, key, value, entries, name, flags, number)


def _elem(fd: int, key: int, value: int, flags: int = 0) -> bytes:
    return struct.pack("<IIQQQ", fd, 0, key, value, flags)


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
    info = ctypes.create_string_buffer(_PROGRAM_INFO_BYTES)
    ids = (ctypes.c_uint32 * _MOST_MAPS)()
    struct.pack_into("<IQ", info, 52, _MOST_MAPS, ctypes.addressof(ids))
    attr = struct.pack("<IIQ", fd, len(info), ctypes.addressof(info))
    _bpf(_OBJ_GET_INFO, attr, "program info")
    (number,) = struct.unpack_from("<I", info.raw, 4)
    jited, translated = struct.unpack_from("<2I", info.raw, 16)
    (count,) = struct.unpack_from("<I", info.raw, 52)
    run_time_ns, runs = struct.unpack_from("<2Q", info.raw, 192)
    (verified,) = struct.unpack_from("<I", info.raw, 216)
    name = info.raw[64:80].split(b"\0")[0].decode()
    maps = tuple(ids[: min(count, _MOST_MAPS)])
    return ProgramInfo(name, jited, translated, verified, run_time_ns, runs, number, maps)


@contextlib.contextmanager
def run_time_kept() -> Iterator[None]:
    """The kernel keeps the run time of programs meanwhile, as with sysctl kernel.bpf_stats_enabled.

    It ends with the descriptor: nothing has to be set back, whatever becomes of this process.
    """
    fd, _ = _bpf(_ENABLE_STATS, struct.pack("<I", 0), "keep run times")
    try:
        yield
    finally:
        os.close(fd)


class RawMap:
    """A map by its descriptor; keys and values are bytes."""

    def __init__(self, fd: int, value_bytes: int | None = None) -> None:
        self.fd = fd
        self.info = map_info(fd)
        self._value_bytes = value_bytes or self.info.value_bytes

    def get(self, key: bytes) -> bytes | None:
        """The value, or None. For per-CPU maps all CPUs' values in a row."""
        k = ctypes.create_string_buffer(key, len(key))
        v = ctypes.create_string_buffer(self._value_bytes)
        attr = _elem(self.fd, ctypes.addressof(k), ctypes.addressof(v))
        try:
            _bpf(_MAP_LOOKUP, attr, f"look up in {self.info.name}")
        except DatapathError as e:
            if isinstance(e.__cause__, FileNotFoundError):
                return None
            raise
        return v.raw

    def set(self, key: bytes, value: bytes) -> None:
        """Write one entry."""
        k = ctypes.create_string_buffer(key, len(key))
        v = ctypes.create_string_buffer(value, len(value))
        attr = _elem(self.fd, ctypes.addressof(k), ctypes.addressof(v))
        _bpf(_MAP_UPDATE, attr, f"update {self.info.name}")

    def all(self) -> bytes:
        """All values of an array map in index order, in one call."""
        count = self.info.max_entries
        keys = ctypes.create_string_buffer(4 * count)
        values = ctypes.create_string_buffer(self._value_bytes * count)
        batch = ctypes.create_string_buffer(8)
        attr = self._batch(0, ctypes.addressof(batch), keys, values, count)
        try:
            _bpf(_MAP_LOOKUP_BATCH, attr, f"read {self.info.name}")
        except DatapathError as e:  # ENOENT: the end was reached, the values are there
            if not isinstance(e.__cause__, FileNotFoundError):
                raise
        return values.raw

    def _batch(
        self, start: int, end: int, keys: ctypes.Array[Any], values: ctypes.Array[Any], count: int
    ) -> bytes:
        where = (start, end, ctypes.addressof(keys), ctypes.addressof(values))
        return struct.pack("<QQQQIIQQ", *where, count, self.fd, 0, 0)

    def clear(self) -> None:
        """As after loading: an array's values are zero, a hash map has no entries.

        Entries that are made meanwhile may stay. Per-CPU maps need `value_bytes` of all CPUs.
        """
        if self.info.type in _ARRAYS:
            self._zero()
        else:
            self._take_all()

    def _zero(self) -> None:
        count = self.info.max_entries
        keys = ctypes.create_string_buffer(struct.pack(f"={count}I", *range(count)), 4 * count)
        values = ctypes.create_string_buffer(-(-self._value_bytes // 8) * 8 * count)
        _bpf(_MAP_UPDATE_BATCH, self._batch(0, 0, keys, values, count), f"clear {self.info.name}")

    def _take_all(self) -> None:
        keys = ctypes.create_string_buffer(self.info.key_bytes * _TAKEN_AT_ONCE)
        values = ctypes.create_string_buffer(self._value_bytes * _TAKEN_AT_ONCE)
        place = ctypes.create_string_buffer(8)  # a bucket's number
        start = 0
        while True:
            attr = self._batch(start, ctypes.addressof(place), keys, values, _TAKEN_AT_ONCE)
            try:
                _bpf(_MAP_TAKE_BATCH, attr, f"clear {self.info.name}")
            except DatapathError as e:  # ENOENT: the end was reached
                if isinstance(e.__cause__, FileNotFoundError):
                    return
                raise
            start = ctypes.addressof(place)

    def delete(self, key: bytes) -> None:
        """Remove one entry, which may be gone already."""
        k = ctypes.create_string_buffer(key, len(key))
        try:
            _bpf(_MAP_DELETE, _elem(self.fd, ctypes.addressof(k), 0), "delete")
        except DatapathError as e:
            if not isinstance(e.__cause__, FileNotFoundError):
                raise

    def next_key(self, key: bytes | None) -> bytes | None:
        """The key after `key` in the map's own order; the first one if that is gone or None."""
        size = self.info.key_bytes
        following = ctypes.create_string_buffer(size)
        k = ctypes.create_string_buffer(key, size) if key is not None else None
        attr = _elem(self.fd, ctypes.addressof(k) if k else 0, ctypes.addressof(following))
        try:
            _bpf(_MAP_GET_NEXT_KEY, attr, "next key")
        except DatapathError as e:
            if isinstance(e.__cause__, FileNotFoundError):
                return None
            raise
        return following.raw

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
        attr = _elem(fd, ctypes.addressof(self._key), ctypes.addressof(self._value))
        self._attr = ctypes.create_string_buffer(attr, _ATTR_BYTES)

    def get(self) -> int:
        """Its value now."""
        if _libc.syscall(_NR_BPF, _MAP_LOOKUP, self._attr, _ATTR_BYTES) < 0:
            error = ctypes.get_errno()
            raise DatapathError(f"bpf: look up in an array: {os.strerror(error)}")
        return self._value.value


def test_run(fd: int, data: bytes, repeat: int = 1, context: bytes = b"") -> TestRun:
    """Run a sched_cls program on a frame (BPF_PROG_TEST_RUN); `data` is 14 bytes or more.

    `context`: a struct __sk_buff; of its fields the kernel takes mark, priority, ifindex and cb,
    and tells what the program made of them.
    """
    source = ctypes.create_string_buffer(data, len(data))
    out = ctypes.create_string_buffer(len(data) + 4096)
    ctx = ctypes.create_string_buffer(context, len(context)) if context else None
    told = ctypes.create_string_buffer(_CONTEXT_BYTES) if context else None
    attr = struct.pack(
        "<IIIIQQIIIIQQ",
        fd,
        0,
        len(data),
        len(out),
        ctypes.addressof(source),
        ctypes.addressof(out),
        repeat,
        0,
        len(context),
        len(told) if told else 0,
        ctypes.addressof(ctx) if ctx else 0,
        ctypes.addressof(told) if told else 0,
    )
    _, reply = _bpf(_PROG_TEST_RUN, attr, "test run")
    retval, _, size_out = struct.unpack_from("<3I", reply, 4)
    duration = struct.unpack_from("<I", reply, 36)[0]
    context_out = told.raw if told else b""
    return TestRun(retval, out.raw[: min(size_out, len(out))], duration, context_out)


class Runner:
    """Like `test_run`, fast, for frames of one length whose verdict the counters tell."""

    def __init__(self, fd: int, frame: bytes, context: bytes = b"", repeat: int = 1) -> None:
        self._frame = ctypes.create_string_buffer(frame, len(frame))
        self._context = ctypes.create_string_buffer(context, len(context))
        data = ctypes.addressof(self._frame)
        ctx = ctypes.addressof(self._context) if context else 0
        sizes = (0, 0, len(context), 0)
        attr = struct.pack("<4I2Q4I2Q", fd, 0, len(frame), 0, data, 0, *sizes, ctx, 0)
        self._attr = ctypes.create_string_buffer(attr, _ATTR_BYTES)
        self._repeat = ctypes.c_uint32.from_buffer(self._attr, 32)
        self._repeat.value = repeat
        self._duration = ctypes.c_uint32.from_buffer(self._attr, 36)

    def put(self, frame: bytes) -> None:
        """The next frame, or how it begins: all are as long as the first."""
        ctypes.memmove(self._frame, frame, len(frame))

    def run(self, repeat: int = 0) -> int:
        """Run it so often (0: as often as before); returns ns each run took, with what the kernel
        did between them."""
        if repeat:
            self._repeat.value = repeat
        if _libc.syscall(_NR_BPF, _PROG_TEST_RUN, self._attr, _ATTR_BYTES) < 0:
            error = ctypes.get_errno()
            raise DatapathError(f"bpf: test run: {os.strerror(error)}") from OSError(error)
        return self._duration.value
