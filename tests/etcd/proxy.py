# SPDX-License-Identifier: GPL-2.0-only
"""Between arbiter and etcd: does something at a chosen moment of a transaction's way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from tests.etcd.cluster import Member

_TXN = b"POST /v3/kv/txn"


class Proxy:
    """Forwards connections to one member; `on_txn` runs when a transaction has come, before it is
    sent on. Of the first `lost_replies` transactions the reply is waited for and thrown away."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self.on_txn: Callable[[], None] = lambda: None
        self.lost_replies = 0
        self.transactions = 0
        self.forwarded = asyncio.Event()  # a transaction is on its way
        self.endpoint = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection carries one request."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await self._request(reader)
            lose = False
            if request.startswith(_TXN):
                self.transactions += 1
                lose = self.transactions <= self.lost_replies
                self.on_txn()
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._member.port)
            up_writer.write(request)
            if request.startswith(_TXN):
                self.forwarded.set()
            reply = await up_reader.read()
            up_writer.close()
            if not lose:
                writer.write(reply)
                await writer.drain()
        writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> bytes:
        """The whole of it, asking etcd to close the connection after its reply."""
        first, *fields = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
        named = dict(field.lower().split(b": ", 1) for field in fields)
        body = await reader.readexactly(int(named[b"content-length"]))
        kept = [field for field in fields if not field.lower().startswith(b"connection:")]
        return b"\r\n".join([first, *kept, b"Connection: close", b"", body])


@contextlib.asynccontextmanager
async def proxy(member: Member) -> AsyncIterator[Proxy]:
    """One on a free port, for as long as the test uses it."""
    made = Proxy(member)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        await server.wait_closed()
