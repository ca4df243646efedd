# SPDX-License-Identifier: GPL-2.0-only
"""What the guest's ledger must answer and must have written (guest/services.c). Pure."""

from __future__ import annotations

import struct

_FNV_BASIS, _FNV_PRIME, _MASK = 1469598103934665603, 1099511628211, (1 << 64) - 1
_MAGIC = 0x4745444C4F4C4F43
_BLOCK_BYTES = 512
_HEAD = struct.Struct("<QQQQ")
EMPTY_SUM = _FNV_BASIS


def _fnv(state: int, data: bytes) -> int:
    for byte in data:
        state = ((state ^ byte) * _FNV_PRIME) & _MASK
    return state


def chain(before: int, number: int, text: str) -> int:
    """The sum over all entries up to this one."""
    return _fnv(_fnv(before, struct.pack("<Q", number)), text.encode())


def block(image: bytes, number: int) -> tuple[int, str] | None:
    """(sum, text) of an entry in a raw image; None if it is not there."""
    data = image[number * _BLOCK_BYTES : (number + 1) * _BLOCK_BYTES]
    if len(data) < _BLOCK_BYTES:
        return None
    magic, stored, total, length = _HEAD.unpack_from(data)
    if magic != _MAGIC or stored != number or length > _BLOCK_BYTES - _HEAD.size:
        return None
    return total, data[_HEAD.size : _HEAD.size + length].decode(errors="replace")
