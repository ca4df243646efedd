# SPDX-License-Identifier: GPL-2.0-only
"""Keys that are derived: by the book, and no two alike."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from colo_ebpf.control.peer.keys import Purpose, derive

# RFC 5869, appendix A.1 to A.3: key, salt, info, output.
VECTORS = [
    (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e59"
        "0e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        "0b" * 22,
        "",
        "",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]


@pytest.mark.parametrize(("key", "salt", "info", "output"), VECTORS)
def test_the_library_does_what_the_standard_says(
    key: str, salt: str, info: str, output: str
) -> None:
    made = HKDF(SHA256(), len(output) // 2, bytes.fromhex(salt), bytes.fromhex(info))
    assert made.derive(bytes.fromhex(key)).hex() == output


def test_a_key_is_of_its_pair_key_its_salt_and_its_purpose() -> None:
    made = {
        derive(pair_key, salt, purpose, 32)
        for pair_key in (b"one key..........", b"another key......")
        for salt in (bytes(16), b"\1" * 16)
        for purpose in Purpose
    }
    assert len(made) == 4 * len(Purpose)
