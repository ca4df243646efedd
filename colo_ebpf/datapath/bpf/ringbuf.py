# SPDX-License-Identifier: GPL-2.0-only
"""A BPF ring buffer, read through libbpf: bcc's own reader would bring LLVM with it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from colo_ebpf.datapath.bpf.libbpf import RECORD_TAKER, library
from colo_ebpf.errors import DatapathError


class Ring:
    """Hands each record to `take`, which may not raise: an exception would be lost in C."""

    def __init__(self, fd: int, take: Callable[[bytes], None]) -> None:
        def on_record(_context: int, data: int, size: int) -> int:
            take(ctypes.string_at(data, size))
            return 0

        self.fd = fd
        self._callback = RECORD_TAKER(on_record)  # must live as long as the reader
        self._reader = library().ring_buffer__new(fd, self._callback, None, None)
        if not self._reader:
            raise DatapathError("ring buffer: it cannot be mapped")

    def consume(self) -> None:
        """All that has been written and not been read."""
        library().ring_buffer__consume(self._reader)

    def close(self) -> None:
        """Unmap it; the map stays."""
        if self._reader:
            library().ring_buffer__free(self._reader)
            self._reader = None
