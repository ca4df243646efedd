# SPDX-License-Identifier: GPL-2.0-only
"""The datagrams between the daemons: one connected UDP socket on each of the two paths.

A connected socket hears the host's "port unreachable", which tells a daemon that is gone from a
host that is gone. A path that cannot be opened or written is tried again at the next beat.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

from colo_ebpf.control.peer import Path

_log = logging.getLogger(__name__)
_CONTROL_CLASS = 6  # SO_PRIORITY TC_PRIO_INTERACTIVE: ahead of bulk data in the link's queue
_LARGEST_BYTES = 4096
_BURST = 64


@dataclass(frozen=True, slots=True)
class Wire:
    """Addresses of one path; both daemons use the same port."""

    path: Path
    local: str
    remote: str
    port: int


class Heartbeats:
    """Sends on all paths, hands over what comes in and what is refused."""

    def __init__(
        self,
        wires: tuple[Wire, ...],
        heard: Callable[[bytes, Path], None],
        refused: Callable[[Path], None],
    ) -> None:
        self._wires = {wire.path: wire for wire in wires}
        self._heard, self._refused = heard, refused
        self._sockets: dict[Path, socket.socket] = {}
        self._complained: set[Path] = set()

    def send(self, path: Path, datagram: bytes) -> None:
        """Send once on one path; a path that is down loses it."""
        wire = self._wires[path]
        try:
            endpoint = self._sockets.get(path) or self._open(wire)
            endpoint.send(datagram)
        except ConnectionRefusedError:
            self._refused(path)
        except BlockingIOError:
            pass  # a full queue: the next beat says the same
        except OSError as e:
            self._complain(wire, e)
            self._close(path)
        else:
            self._complained.discard(path)

    def _open(self, wire: Wire) -> socket.socket:
        endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            endpoint.setblocking(False)
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _CONTROL_CLASS)
            endpoint.bind((wire.local, wire.port))
            endpoint.connect((wire.remote, wire.port))
        except OSError:
            endpoint.close()
            raise
        self._sockets[wire.path] = endpoint
        asyncio.get_running_loop().add_reader(endpoint, self._read, wire.path, endpoint)
        return endpoint

    def _read(self, path: Path, endpoint: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                datagram = endpoint.recv(_LARGEST_BYTES)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self._refused(path)
            except OSError:
                return  # the next send finds out what is wrong
            else:
                self._heard(datagram, path)

    def _complain(self, wire: Wire, error: OSError) -> None:
        if wire.path not in self._complained:
            self._complained.add(wire.path)
            where = f"{wire.local} to {wire.remote}, UDP port {wire.port}"
            _log.warning("heartbeats on the %s path (%s): %s", wire.path.value, where, error)

    def _close(self, path: Path) -> None:
        endpoint = self._sockets.pop(path, None)
        if endpoint is not None:
            asyncio.get_running_loop().remove_reader(endpoint)
            with contextlib.suppress(OSError):
                endpoint.close()

    def close(self) -> None:
        """Close every path."""
        for path in self._wires:
            self._close(path)
