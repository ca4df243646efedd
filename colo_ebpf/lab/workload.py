# SPDX-License-Identifier: GPL-2.0-only
"""What the client does all the while, and what it keeps as evidence.

Each part runs until `stop` is set and never gives up by itself: only its own deadline, far beyond
any failover, ends a wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import socket
import struct
import time
from dataclasses import dataclass, field
from itertools import pairwise

from colo_ebpf.lab import ledger
from colo_ebpf.lab.client import Client, Lines

HTTP, ECHO, LEDGER, DICE = 80, 7, 7001, 7002
PATIENCE_S = 60.0
_PATTERN = 251
_PACE_S = 0.05


async def served(client: Client, port: int) -> socket.socket:
    """A connection, once the guest listens there: it boots, and nobody tells the client."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(OSError):
                return await client.connect(port)
            await asyncio.sleep(_PACE_S)


async def until_serving(client: Client) -> None:
    """The guest accepts connections."""
    (await served(client, LEDGER)).close()


@dataclass
class Gaps:
    """When answers came; the longest time without one is what a user notices."""

    at: list[float] = field(default_factory=list)

    def mark(self) -> None:
        """An answer came now."""
        self.at.append(time.monotonic())

    def longest_ms(self, since: float, until: float) -> float:
        """The longest silence that reaches into the interval."""
        inside = [since, *(t for t in self.at if since < t < until), until]
        pairs = pairwise(inside)
        return max(after - before for before, after in pairs) * 1000

    def longest_begun_ms(self, since: float, until: float) -> float:
        """The longest silence that begins in the interval, whenever it ends; 0 if none does."""
        pairs = pairwise([*self.at, time.monotonic()])
        begun = (after - before for before, after in pairs if since <= before < until)
        return max(begun, default=0.0) * 1000


class Ledger:
    """One TCP connection that never closes; numbered entries, each answered with a chained sum."""

    def __init__(self, client: Client, pace_s: float = _PACE_S / 2) -> None:
        self._client, self._pace_s = client, pace_s
        self.entries: list[tuple[int, str]] = []  # (sum, text) of each acknowledged entry
        self.wrong: list[str] = []
        self.gaps = Gaps()
        self.took_s: list[float] = []  # of each entry, from asking to its answer
        self.lines: Lines | None = None
        self._asked = ""  # text of the entry that waits for its answer

    async def run(self, stop: asyncio.Event) -> None:
        """Append entries until told to stop. Run again after a connection was lost, it begins with
        the entry that was not answered: whether or not that was written, there is one answer."""
        async with asyncio.timeout(PATIENCE_S):
            self.lines = Lines(await self._client.connect(LEDGER))
        while not stop.is_set():
            await self._append(self.lines)
            await asyncio.sleep(self._pace_s)

    async def _append(self, lines: Lines) -> None:
        number = len(self.entries) + 1
        self._asked = self._asked or f"entry {os.urandom(6).hex()}"
        before = self.entries[-1][0] if self.entries else ledger.EMPTY_SUM
        total = ledger.chain(before, number, self._asked)
        asked_at = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            reply = await lines.ask(f"ADD {number} {self._asked}")
        self.gaps.mark()
        self.took_s.append(self.gaps.at[-1] - asked_at)
        self.entries.append((total, self._asked))
        self._asked = ""
        if reply != f"OK {number} {total:016x}":
            self.wrong.append(f"entry {number}: {reply!r}")

    async def recheck(self) -> None:
        """On the same connection: the guest remembers every entry, in order, and no more."""
        assert self.lines is not None
        total = self.entries[-1][0] if self.entries else ledger.EMPTY_SUM
        asked = {"SUM": f"SUM {len(self.entries)} {total:016x}"}
        asked |= {f"GET {n}": f"ENTRY {n} {t}" for n, (_, t) in enumerate(self.entries, 1)}
        for request, wanted in asked.items():
            async with asyncio.timeout(PATIENCE_S):
                reply = await self.lines.ask(request)
            if reply != wanted:
                self.wrong.append(f"{request}: {reply!r}, not {wanted!r}")
        if self.lines.surplus:
            self.wrong.append(f"nobody asked for {self.lines.surplus!r}")
        self.lines.close()

    def missing_on(self, image: bytes) -> list[int]:
        """Acknowledged entries that a raw image does not hold."""
        numbered = enumerate(self.entries, 1)
        return [number for number, entry in numbered if ledger.block(image, number) != entry]


class Download:
    """One HTTP response, read at a steady pace so that it lasts; its digest must be right."""

    def __init__(self, client: Client, total_bytes: int, bytes_per_s: int) -> None:
        self._client, self.total_bytes, self._bytes_per_s = client, total_bytes, bytes_per_s
        self.received_bytes = 0
        self.ok = False

    async def run(self) -> None:
        """Read all of it."""
        loop = asyncio.get_running_loop()
        s = await self._client.connect(HTTP, receive_bytes=256 << 10)
        request = f"GET /blob?size={self.total_bytes} HTTP/1.0\r\n\r\n"
        await loop.sock_sendall(s, request.encode())
        digest, head, body = hashlib.sha256(), b"", 0
        start = loop.time()
        async with asyncio.timeout(self.total_bytes / self._bytes_per_s + PATIENCE_S):
            while data := await loop.sock_recv(s, 65536):
                if b"\r\n\r\n" not in head:
                    head, _, data = (head + data).partition(b"\r\n\r\n")
                    head += b"\r\n\r\n"
                digest.update(data)
                body += len(data)
                self.received_bytes = body
                await asyncio.sleep(max(0.0, start + body / self._bytes_per_s - loop.time()))
        s.close()
        self.ok = body == self.total_bytes and digest.digest() == self._expected()

    def _expected(self) -> bytes:
        period = bytes((k * k * 7 + k) % 256 for k in range(_PATTERN))
        whole = period * (self.total_bytes // _PATTERN + 1)
        return hashlib.sha256(whole[: self.total_bytes]).digest()


class Datagrams:
    """A datagram every 50 ms, which the guest sends back. Losses are counted, lies are kept."""

    def __init__(self, client: Client, kind: str) -> None:
        self.kind = kind
        self._socket = client.icmp() if kind == "icmp" else client.udp(ECHO)
        self._ident = secrets.randbits(16)  # late replies to another's are none of ours
        self.sent = 0
        self.answered: set[bytes] = set()
        self.wrong: list[str] = []
        self.gaps = Gaps()
        self._open: set[bytes] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Send until told to stop."""
        reader = asyncio.create_task(self._read())
        try:
            while not stop.is_set():
                self.sent += 1
                token = struct.pack("!I", self.sent) + os.urandom(12)
                self._open.add(token)
                with contextlib.suppress(OSError):
                    self._socket.send(self._request(token))
                await asyncio.sleep(_PACE_S)
        finally:
            reader.cancel()
            self._socket.close()

    def _request(self, token: bytes) -> bytes:
        if self.kind != "icmp":
            return token
        head = struct.pack("!BBHHH", 8, 0, 0, self._ident, self.sent & 0xFFFF)
        return struct.pack("!BBH", 8, 0, _checksum(head + token)) + head[4:] + token

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(self._socket, 2048)
            except OSError:
                continue
            token = self._token(data)
            if token is None:
                continue
            if token not in self._open:
                self.wrong.append(f"{self.kind}: {data.hex()}")
            self.answered.add(token)
            self.gaps.mark()

    def _token(self, data: bytes) -> bytes | None:
        if self.kind != "icmp":
            return data
        message = data[(data[0] & 15) * 4 :]
        kind, _, _, ident = struct.unpack_from("!BBHH", message)
        return message[8:] if (kind, ident) == (0, self._ident) else None


class Dice:
    """Every second, a new connection rolls: both VMs differ each time. All values are kept."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.seen: dict[int, str] = {}
        self.wrong: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Roll until told to stop."""
        while not stop.is_set():
            await self.roll()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await stop.wait()

    async def roll(self) -> None:
        """One roll."""
        async with asyncio.timeout(PATIENCE_S):
            lines = Lines(await self._client.connect(DICE))
            index, value = (await lines.ask("ROLL")).split()
        lines.close()
        if self.seen.setdefault(int(index), value) != value:
            self.wrong.append(f"roll {index} was {self.seen[int(index)]}, then {value}")

    async def recheck(self) -> None:
        """The guest that serves now remembers everything a client ever saw."""
        async with asyncio.timeout(PATIENCE_S):
            lines = Lines(await self._client.connect(DICE))
            for index, value in self.seen.items():
                reply = await lines.ask(f"GET {index}")
                if reply != f"{index} {value}":
                    self.wrong.append(f"roll {index} was {value}, is remembered as {reply!r}")
        lines.close()


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
