# SPDX-License-Identifier: GPL-2.0-only
"""One connection to an NBD export through libnbd, whose every wait ends.

libnbd's own calls wait for ever, and a thread that waits cannot be cancelled. Here its state
machine is driven with `poll` up to a deadline, so a hung server costs the deadline and no thread.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import nbd

from colo_ebpf import addresses
from colo_ebpf.errors import StorageError

ALLOCATION = "base:allocation"
_ZERO = 2  # NBD_STATE_ZERO
_RECEIVE_BYTES = 1 << 20
_CONNECT_MS = 10_000  # at most: the export was there a moment before
_STOPPED_LOOK_S = 0.5
_STATUS_BYTES = 1 << 30  # of one block status request; the protocol counts in 32 bits


@dataclass(frozen=True, slots=True)
class ExportAddress:
    """An export of a server on a unix socket (`path`) or on TCP (`host`, `port`)."""

    name: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return f"export {self.name} on {self.path or addresses.with_port(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of an export."""

    offset_bytes: int
    length_bytes: int
    flags: int  # what the context says of it

    @property
    def zero(self) -> bool:
        """It reads as zeroes (of ALLOCATION)."""
        return bool(self.flags & _ZERO)


@dataclass(frozen=True, slots=True)
class Reading:
    """A read under way."""

    buffer: Any
    cookie: int


# A server that dies with requests unread resets the connection; one without closes it.
_CLOSED = frozenset((errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE))


class Connection:
    """Connects when entered. Raises StorageError with the export's address."""

    def __init__(
        self,
        address: ExportAddress,
        timeout_ms: int,
        context: str = ALLOCATION,
        stopped: threading.Event | None = None,
    ) -> None:
        """`stopped`: ends each wait, with an error."""
        self.address, self._stopped = address, stopped
        self._timeout_ms, self._context = timeout_ms, context
        self._writes: deque[tuple[Any, int]] = deque()  # not known to be done: buffer, cookie
        self.handle = nbd.NBD()

    def __enter__(self) -> Self:
        with self._wrapped():
            self._connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Say goodbye if the server listens; dropping the handle closes the socket."""
        try:
            if error is None and self.handle.aio_is_ready():
                with self._wrapped():
                    self.handle.aio_disconnect(0)
                    self.drive(self.handle.aio_is_closed)
        except StorageError:
            pass
        finally:
            del self.handle

    def _connect(self) -> None:
        self.handle.set_export_name(self.address.name)
        self.handle.add_meta_context(self._context)
        self.handle.aio_connect_socket(self._socket().detach())
        self.drive(self.handle.aio_is_ready)

    def list_names(self) -> list[str]:
        """The exports that the server lists. Instead of entering: no export is opened."""
        found: list[str] = []
        answered: list[int] = []

        def take(name: str, _description: str) -> int:
            found.append(name)
            return 0

        def end(error: Any) -> int:
            answered.append(error.value)
            return 1

        with self._wrapped():
            self.handle.set_opt_mode(True)
            self.handle.aio_connect_socket(self._socket().detach())
            self.drive(self.handle.aio_is_negotiating)
            self.handle.aio_opt_list(take, end)
            self.drive(lambda: bool(answered))
            self.handle.aio_opt_abort()
        return found

    def _socket(self) -> socket.socket:
        at = self.address
        family = socket.AF_UNIX if at.path else addresses.family(at.host)
        s = socket.socket(family, socket.SOCK_STREAM)
        try:
            # Before connecting: it decides how much the server may send to one who does not read.
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            s.settimeout(min(self._timeout_ms, _CONNECT_MS) / 1000)
            s.connect(at.path or (at.host, at.port))
            s.setblocking(False)
        except BaseException:
            s.close()
            raise
        return s

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        try:
            yield
        except nbd.Error as e:
            gone = e.errnum in _CLOSED or self.handle.aio_is_dead()
            why = "the server closed the connection" if gone else e.string
            raise StorageError(f"{self.address}: {why}") from e
        except TimeoutError as e:
            raise StorageError(
                f"{self.address}: no answer within {self._timeout_ms} ms: is its QEMU stopped or "
                "the link cut?"
            ) from e
        except OSError as e:
            raise StorageError(
                f"{self.address}: {e.strerror}: is its QEMU running, and reachable from here?"
            ) from e

    def drive(self, done: Callable[[], bool]) -> None:
        """Let the protocol go on until `done`; TimeoutError at the deadline."""
        deadline = time.monotonic() + self._timeout_ms / 1000
        while not done():
            wait_s = deadline - time.monotonic()
            if wait_s <= 0:
                raise TimeoutError
            if self._stopped is not None:
                wait_s = min(wait_s, _STOPPED_LOOK_S)
                if self._stopped.is_set():
                    raise StorageError(f"{self.address}: it was given up")
            if self.handle.aio_is_dead() or self.handle.aio_is_closed():
                raise ConnectionResetError(0, "the server closed the connection")
            self._step(wait_s)

    def _step(self, wait_s: float) -> None:
        direction = self.handle.aio_get_direction()
        poller = select.poll()
        wanted = select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0
        wanted |= select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
        poller.register(self.handle.aio_get_fd(), wanted)
        for _, ready in poller.poll(wait_s * 1000):
            if ready & select.POLLOUT:
                self.handle.aio_notify_write()
            else:
                self.handle.aio_notify_read()

    # -- requests ------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Virtual size."""
        return int(self.handle.get_size())

    def start_read(self, offset_bytes: int, length_bytes: int) -> Reading:
        """Ask for bytes; `finish_read` waits for them."""
        with self._wrapped():
            buffer = nbd.Buffer(length_bytes)
            return Reading(buffer, self.handle.aio_pread(buffer, offset_bytes))

    def finish_read(self, reading: Reading) -> bytearray:
        """The bytes that were asked for."""
        self._complete(reading.cookie)
        with self._wrapped():
            data: bytearray = reading.buffer.to_bytearray()
        return data

    def start_write(self, offset_bytes: int, data: bytearray) -> None:
        """Send bytes; zeroes are not sent, and take no room where the server can do without."""
        buffer = nbd.Buffer.from_bytearray(data)
        with self._wrapped():
            if data.count(0) < len(data):
                cookie = self.handle.aio_pwrite(buffer, offset_bytes)
            else:
                cookie = self.handle.aio_zero(len(data), offset_bytes)
        self._writes.append((buffer, cookie))

    def settle(self, most: int) -> None:
        """Wait until no more writes than so many are under way."""
        while len(self._writes) > most:
            self._complete(self._writes.popleft()[1])

    def flush(self) -> None:
        """What was written is durable."""
        with self._wrapped():
            cookie = self.handle.aio_flush()
        self._complete(cookie)

    def _complete(self, cookie: int) -> None:
        with self._wrapped():
            self.drive(lambda: bool(self.handle.aio_command_completed(cookie)))

    def extents(self, offset_bytes: int, length_bytes: int) -> list[Extent]:
        """Where zeroes are, from the offset on; at least one extent, maybe not all that was asked.

        A server that cannot say has no zeroes to tell of.
        """
        if self.handle.can_meta_context(self._context):
            return self.flags(offset_bytes, length_bytes)
        return [Extent(offset_bytes, min(length_bytes, _STATUS_BYTES), 0)]

    def flags(self, offset_bytes: int, length_bytes: int) -> list[Extent]:
        """The same, of any context. StorageError if the server does not know it."""
        length_bytes = min(length_bytes, _STATUS_BYTES)
        words: list[int] = []

        def take(_context: str, _offset: int, entries: list[int], _error: Any) -> int:
            words.extend(entries)
            return 0

        with self._wrapped():
            cookie = self.handle.aio_block_status(length_bytes, offset_bytes, take)
        self._complete(cookie)
        return clipped(words, offset_bytes, length_bytes)


def clipped(words: list[int], offset_bytes: int, length_bytes: int) -> list[Extent]:
    """A server's pairs of length and flags as extents. The last may reach beyond what was asked."""
    found, at, end = [], offset_bytes, offset_bytes + length_bytes
    for length, flags in zip(words[::2], words[1::2], strict=True):
        if at < end:
            found.append(Extent(at, min(length, end - at), flags))
        at += length
    return found or [Extent(offset_bytes, length_bytes, 0)]
