# SPDX-License-Identifier: GPL-2.0-only
"""The Internet checksum, fast."""

from __future__ import annotations

import array
import socket


def checksum(data: bytes) -> int:
    """Ones' complement sum, RFC 1071."""
    words = array.array("H", data + b"\0" * (len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return socket.htons(~total & 0xFFFF)
