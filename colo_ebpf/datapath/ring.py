# SPDX-License-Identifier: GPL-2.0-only
"""A BPF ring buffer, read through libbpf: bcc's own reader would bring LLVM with it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from colo_ebpf.errors import DatapathError

_LIBRARY = "libbpf.so.1"
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


@functools.cache
def _libbpf() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as e:
        raise DatapathError(f"{_LIBRARY}: {e}; install libbpf1") from e
    library.ring_buffer__new.restype = ctypes.c_void_p
    library.ring_buffer__new.argtypes = (ctypes.c_int, _CALLBACK, ctypes.c_void_p, ctypes.c_void_p)
    library.ring_buffer__consume.argtypes = (ctypes.c_void_p,)
    library.ring_buffer__free.argtypes = (ctypes.c_void_p,)
    return library


def library_name() -> str:
    """Of libbpf, once it could be loaded; DatapathError says which package has it."""
    _libbpf()
    return _LIBRARY


class Ring:
    """Hands each record to `take`, which may not raise: an exception would be lost in C."""

    def __init__(self, fd: int, take: Callable[[bytes], None]) -> None:
        def on_record(_context: int, data: int, size: int) -> int:
            take(ctypes.string_at(data, size))
            return 0

        self.fd = fd
        self._callback = _CALLBACK(on_record)  # must live as long as the reader
        self._reader = _libbpf().ring_buffer__new(fd, self._callback, None, None)
        if not self._reader:
            raise DatapathError("ring buffer: it cannot be mapped")

    def consume(self) -> None:
        """All that has been written and not been read."""
        _libbpf().ring_buffer__consume(self._reader)

    def close(self) -> None:
        """Unmap it; the map stays."""
        if self._reader:
            _libbpf().ring_buffer__free(self._reader)
            self._reader = None
