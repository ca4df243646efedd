# SPDX-License-Identifier: GPL-2.0-only
"""The datagrams between the daemons: one connected UDP socket on each of the two paths.

A connected socket hears the host's "port unreachable", which tells a daemon that is gone from a
host that is gone. A path that cannot be opened or written is tried again at the next beat.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from colo_ebpf import addresses
from colo_ebpf.control.loop import BeatSelector
from colo_ebpf.control.peer.state import Path

_log = logging.getLogger(__name__)
_CONTROL_CLASS = 6  # SO_PRIORITY TC_PRIO_INTERACTIVE: ahead of bulk data in the link's queue
_LARGEST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Wire:
    """Addresses of one path; both daemons use the same port."""

    path: Path
    local: str
    remote: str
    port: int


class _Way:
    """One path; it is opened, and after an error opened again, by the next datagram to be sent."""

    def __init__(
        self,
        wire: Wire,
        selector: BeatSelector,
        heard: Callable[[bytes, Path], bool],
        refused: Callable[[Path], None],
    ) -> None:
        self._wire, self._selector = wire, selector
        self._heard, self._refused = heard, refused
        self._socket: socket.socket | None = None
        self._complained = False

    def send(self, datagram: bytes) -> None:
        """Once; while the path is down it is lost."""
        try:
            (self._socket or self._open()).send(datagram)
        except ConnectionRefusedError:
            self._refused(self._wire.path)
        except BlockingIOError:
            pass  # a full queue: the next beat says the same
        except OSError as e:
            self._complain(e)
            self.close()
        else:
            self._complained = False

    def _open(self) -> socket.socket:
        wire = self._wire
        endpoint = socket.socket(addresses.family(wire.local), socket.SOCK_DGRAM)
        try:
            endpoint.setblocking(False)
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _CONTROL_CLASS)
            endpoint.bind((wire.local, wire.port))
            endpoint.connect((wire.remote, wire.port))
        except OSError:
            endpoint.close()
            raise
        self._socket = endpoint
        self._selector.listen(endpoint.fileno(), partial(self._read, endpoint))
        return endpoint

    def _read(self, endpoint: socket.socket) -> bool:
        """One datagram: to ask whether there is another one costs as much as to be told so."""
        path = self._wire.path
        try:
            datagram = endpoint.recv(_LARGEST_BYTES)
        except ConnectionRefusedError:
            self._refused(path)
        except OSError:
            pass  # none after all, or the next send finds out what is wrong
        else:
            return self._heard(datagram, path)
        return False

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained, wire = True, self._wire
            where = f"{wire.local} to {wire.remote}, UDP port {wire.port}"
            _log.warning("heartbeats on the %s path (%s): %s", wire.path.value, where, error)

    def close(self) -> None:
        """Until the next `send`."""
        endpoint, self._socket = self._socket, None
        if endpoint is not None:
            self._selector.ignore(endpoint.fileno())
            with contextlib.suppress(OSError):
                endpoint.close()


class Heartbeats:
    """Sends on all paths, hands over what comes in and what is refused."""

    def __init__(
        self,
        wires: tuple[Wire, ...],
        selector: BeatSelector,
        heard: Callable[[bytes, Path], bool],
        refused: Callable[[Path], None],
    ) -> None:
        """`heard` says whether it may have left work for the loop."""
        self._ways = [_Way(wire, selector, heard, refused) for wire in wires]

    def send(self, datagram: bytes) -> None:
        """Once on each path."""
        for way in self._ways:
            way.send(datagram)

    def close(self) -> None:
        """Close every path."""
        for way in self._ways:
            way.close()
