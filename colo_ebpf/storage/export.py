# SPDX-License-Identifier: GPL-2.0-only
"""The peer's NBD export, through libnbd."""

from __future__ import annotations

import asyncio

from colo_ebpf.errors import StorageError


def _size(address: str, port: int, name: str) -> int:
    import nbd

    handle = nbd.NBD()
    try:
        handle.set_export_name(name)
        handle.connect_tcp(address, str(port))
        if handle.is_read_only():
            raise StorageError(f"export {name} on {address}:{port}: is read-only")
        size = int(handle.get_size())
        handle.shutdown()
        return size
    except nbd.Error as e:
        raise StorageError(f"export {name} on {address}:{port}: {e.string}") from e


async def export_size(address: str, port: int, name: str, timeout_ms: int) -> int:
    """Virtual size in bytes of a writable export; StorageError if it cannot be had."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            return await asyncio.to_thread(_size, address, port, name)
    except TimeoutError as e:
        raise StorageError(
            f"export {name} on {address}:{port}: no answer within {timeout_ms} ms"
        ) from e


async def check_same_size(
    local_bytes: int, address: str, port: int, name: str, timeout_ms: int
) -> None:
    """Refuse to pair images of different size."""
    remote = await export_size(address, port, name, timeout_ms)
    if remote != local_bytes:
        raise StorageError(
            f"images differ in size: {local_bytes} bytes here, {remote} bytes in export {name} on "
            f"{address}:{port}; make both the same before pairing"
        )
