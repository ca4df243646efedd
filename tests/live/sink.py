# SPDX-License-Identifier: GPL-2.0-only
"""A server that says the same every time: it takes an upload and answers with its digest.

python3 sink.py PORT [mptcp]. An upload is its length in eight bytes, then its bytes; many may
follow each other on one connection.
"""

import asyncio
import hashlib
import socket
import sys


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.read(1):
            left = int.from_bytes(head + await reader.readexactly(7), "big")
            digest = hashlib.sha256()
            while left:
                part = await reader.read(min(left, 65536))
                if not part:
                    return
                digest.update(part)
                left -= len(part)
            writer.write(digest.hexdigest().encode())
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main() -> None:
    protocol = socket.IPPROTO_MPTCP if "mptcp" in sys.argv else 0
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", int(sys.argv[1])))
    server = await asyncio.start_server(_serve, sock=listener, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
