# SPDX-License-Identifier: GPL-2.0-only
"""A lab's client: sockets that live in its namespace, used from the caller's event loop."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct

from colo_ebpf.datapath.net import namespaces

_PACKET_ALL = 3
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER
_SNAPSHOT_BYTES = 64


class Client:
    """Opens sockets in one namespace, towards one guest."""

    def __init__(self, namespace: str, guest: str) -> None:
        self._namespace = namespace
        self.guest = guest

    def _socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket stays in the namespace of the thread that made it."""
        made = namespaces.run_in(self._namespace, lambda: socket.socket(family, kind, protocol))
        made.setblocking(False)
        return made

    async def connect(self, port: int, receive_bytes: int = 0) -> socket.socket:
        """A TCP connection; OSError or TimeoutError of the caller's deadline."""
        s = await asyncio.to_thread(self._socket, socket.AF_INET, socket.SOCK_STREAM)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_bytes:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(s, (self.guest, port))
        except BaseException:
            s.close()
            raise
        return s

    def udp(self, port: int) -> socket.socket:
        """A connected UDP socket."""
        s = self._socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.connect((self.guest, port))
        return s

    def icmp(self) -> socket.socket:
        """A raw ICMP socket, connected to the guest."""
        s = self._socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        s.connect((self.guest, 0))
        return s

    def sniffer(self, ifname: str, source_mac: str) -> socket.socket:
        """Every frame of a device that comes from one MAC address."""

        def make() -> socket.socket:
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_PACKET_ALL))
            _only_from(s, source_mac)
            s.bind((ifname, 0))
            s.setblocking(False)
            return s

        return namespaces.run_in(self._namespace, make)


def _only_from(s: socket.socket, mac: str) -> None:
    """A classic filter on the source address: bytes 6 to 11 of the frame."""
    high, low = struct.unpack("!HI", bytes.fromhex(mac.replace(":", "")))
    load_half, load_word, equal, give = 0x28, 0x20, 0x15, 0x06
    code = (
        (load_half, 0, 0, 6),
        (equal, 0, 3, high),
        (load_word, 0, 0, 8),
        (equal, 0, 1, low),
        (give, 0, 0, _SNAPSHOT_BYTES),
        (give, 0, 0, 0),
    )
    words = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
    program = struct.pack("HL", len(code), ctypes.addressof(words))
    s.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)


class Lines:
    """Requests and replies of one line each, over one connection."""

    def __init__(self, s: socket.socket) -> None:
        self.socket = s
        self._buffer = b""

    async def ask(self, request: str) -> str:
        """Send a line, wait for the next one; ConnectionError if the other side is gone."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.socket, request.encode() + b"\n")
        return await self.line()

    async def line(self) -> str:
        """Wait for the next line, asked for or not."""
        loop = asyncio.get_running_loop()
        while b"\n" not in self._buffer:
            data = await loop.sock_recv(self.socket, 4096)
            if not data:
                raise ConnectionError("the guest closed the connection")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")

    @property
    def surplus(self) -> bytes:
        """What came that nobody had asked for."""
        return self._buffer

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()
