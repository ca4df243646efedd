# SPDX-License-Identifier: GPL-2.0-only
"""A compiled source: everything the kernel is told of it, with maps by name instead of descriptor.

It is what bcc hands to bpf(2) (`recorder`), so that loading it makes the same programs and maps.
It says nothing of one VM: where maps are pinned is up to who loads it (`loader`).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
from dataclasses import dataclass
from typing import Any

import msgspec

from colo_ebpf.errors import LoadError

FORMAT = 1  # of an image, and of what its digest is made of
INSTRUCTION_BYTES = 8
_WIDE = 0x18  # BPF_LD | BPF_DW | BPF_IMM: two instructions
_HEAD = struct.Struct("<BBhi")  # opcode, registers, offset, immediate
_PSEUDO_MAP_FD = 1


@dataclass(frozen=True, slots=True)
class Source:
    """A source as it is compiled: our own headers inlined, `flags` for clang."""

    name: str
    text: str
    flags: tuple[str, ...]
    programs: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of everything the image depends on but the compiler: the kernel too, whose headers
        and verifier it was made for."""
        kernel = os.uname()
        release = (kernel.release, kernel.version, kernel.machine)
        parts = (FORMAT, self.name, self.text, self.flags, self.programs, release)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


class MapDefinition(msgspec.Struct, frozen=True):
    """What BPF_MAP_CREATE is told. `key_type` and `value_type`: in the image's BTF; 0: none."""

    name: str
    kind: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int
    key_type: int
    value_type: int
    pinned: bool  # shared by all sources, and outlives who loads it


class Program(msgspec.Struct, frozen=True):
    """What BPF_PROG_LOAD is told. `maps`: which instruction refers to which map of the image."""

    name: str
    code: bytes
    maps: tuple[tuple[int, int], ...]
    functions: tuple[bytes, int]
    lines: tuple[bytes, int]


class Image(msgspec.Struct, frozen=True):
    """A whole source. `types`: BTF; empty if the compiler made none."""

    source: str
    license: str
    types: bytes
    maps: tuple[MapDefinition, ...]
    programs: tuple[Program, ...]

    def code(self, program: Program, fds: list[int]) -> bytes:
        """Its instructions, with the descriptors of the image's maps in their places."""
        code = bytearray(program.code)
        for at, number in program.maps:
            struct.pack_into("<i", code, at * INSTRUCTION_BYTES + 4, fds[number])
        return bytes(code)


def unbound(code: bytes, numbers: dict[int, int]) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """Take the descriptors out of some instructions; returns these, and what belongs where.

    `numbers`: the map's number by its descriptor. LoadError on a reference of another kind.
    """
    plain, found = bytearray(code), []
    places = iter(range(0, len(code), INSTRUCTION_BYTES))
    for at in places:
        opcode, registers, _, immediate = _HEAD.unpack_from(code, at)
        if opcode != _WIDE:
            continue
        next(places, None)
        if registers >> 4 == 0:
            continue
        if registers >> 4 != _PSEUDO_MAP_FD or immediate not in numbers:
            raise LoadError(f"instruction {at // INSTRUCTION_BYTES} refers to no map we know")
        struct.pack_into("<i", plain, at + 4, 0)
        found.append((at // INSTRUCTION_BYTES, numbers[immediate]))
    return bytes(plain), tuple(found)


def encode(image: Image) -> bytes:
    """To be kept, or to go through a pipe."""
    return msgspec.msgpack.encode(image)


def decode(data: bytes) -> Image:
    """What `encode` made; LoadError if it cannot be that."""
    try:
        image = msgspec.msgpack.decode(data, type=Image)
    except msgspec.MsgspecError as e:
        raise LoadError(f"no image of programs: {e}") from e
    names = [one.name for one in itertools.chain[Any](image.maps, image.programs)]
    whole = all(_whole(image, program) for program in image.programs)
    if not whole or not all(name.isidentifier() for name in names):
        raise LoadError("no image of programs: its parts do not fit together")
    return image


def _whole(image: Image, program: Program) -> bool:
    count, rest = divmod(len(program.code), INSTRUCTION_BYTES)
    records = (program.functions, program.lines)
    return (
        not rest
        and all(0 <= at < count and 0 <= n < len(image.maps) for at, n in program.maps)
        and all(size >= 0 and not len(data) % (size or 1) for data, size in records)
    )
