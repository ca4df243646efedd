# SPDX-License-Identifier: GPL-2.0-only
"""Clients that check every byte they are given."""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import dataclass, field

from tests.live.pair import ADDRESS


@dataclass
class Tally:
    """What the clients saw."""

    done: int = 0
    wrong: list[str] = field(default_factory=list)


async def fetch(name: str, received: bytearray | None = None) -> bytes:
    """One file over a connection of its own; HTTP 0.9, so that nothing but the file comes."""
    reader, writer = await asyncio.open_connection(ADDRESS, 80)
    data = bytearray() if received is None else received
    try:
        writer.write(f"GET /{name}\r\n".encode())
        while part := await reader.read(65536):
            data += part
    finally:
        writer.close()
    return bytes(data)


async def upload(rng: random.Random, count: int) -> None:
    """Some uploads over one connection; AssertionError if a digest is wrong."""
    await upload_of(*(rng.randbytes(rng.randrange(1, 200_000)) for _ in range(count)))


async def upload_of(*files: bytes) -> None:
    """These over one connection; AssertionError if a digest is wrong."""
    reader, writer = await asyncio.open_connection(ADDRESS, 81)
    try:
        for data in files:
            await send_file(reader, writer, data)
    finally:
        writer.close()


async def send_file(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes
) -> None:
    """One upload; AssertionError if its digest is wrong."""
    writer.write(len(data).to_bytes(8, "big") + data)
    await writer.drain()
    answer = await reader.readexactly(64)
    assert answer.decode() == hashlib.sha256(data).hexdigest(), "an upload was garbled"


async def crowd(content: dict[str, bytes], total: int, at_once: int, tally: Tally) -> None:
    """`total` connections that download, one in eight that upload as well."""
    rng = random.Random(total)
    names = sorted(content)
    left = iter(range(total))

    async def one() -> None:
        for number in left:
            name = names[rng.randrange(len(names))]
            try:
                if number % 8 == 0:
                    await upload(random.Random(number), 3)
                if await fetch(name) != content[name]:
                    tally.wrong.append(f"{name}: other bytes")
            except (OSError, AssertionError, asyncio.IncompleteReadError) as e:
                tally.wrong.append(f"{name}: {e!r}")
            tally.done += 1

    await asyncio.gather(*(one() for _ in range(at_once)))
