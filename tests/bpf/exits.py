# SPDX-License-Identifier: GPL-2.0-only
"""The ways through compiled programs: does each count something before it ends?

A way counts when it looks up `colo_stats`. A program that another one calls for good (a tail call)
begins as the caller was then: some callers have counted the frame, some leave that to the program.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from colo_ebpf.datapath.bpf.image import INSTRUCTION_BYTES, Image, Program

COUNTERS, CALLS = "colo_stats", "colo_calls"
_LOOK_UP, _TAIL_CALL = 1, 12  # enum bpf_func_id
_LD_IMM64, _CALL, _EXIT = 0x18, 0x85, 0x95
_MOVE_NUMBER, _MOVE_NUMBER32, _MOVE, _MOVE32 = 0xB7, 0xB4, 0xBF, 0xBC
_JUMP, _JUMP32 = 5, 6  # instruction classes; 0 to 3: loads and stores
_STORES = (2, 3)
_ALWAYS = 0x05
_INSTRUCTION = struct.Struct("<BBhi")
Known = tuple[str | int | None, ...]  # by register: the map, or the number, if it is known
_NOTHING: Known = (None,) * 11


@dataclass(frozen=True, slots=True)
class At:
    """Where a way stands: the instruction, whether it has counted, and what registers hold."""

    place: int
    counted: bool
    known: Known = _NOTHING


@dataclass(slots=True)
class Ways:
    """All ways through a program, as far as it matters here."""

    uncounted_exits: set[int] = field(default_factory=set)
    calls: set[tuple[int | None, bool]] = field(default_factory=set)  # place, and counted before


class _Code:
    """A program's instructions, with the names of the maps they load."""

    def __init__(self, image: Image, program: Program) -> None:
        self.instructions = list(_INSTRUCTION.iter_unpack(program.code))
        self.maps = {at: image.maps[number].name for at, number in program.maps}

    def next_ones(self, at: At, ways: Ways) -> Iterator[At]:
        opcode, registers, offset, immediate = self.instructions[at.place]
        kind, to = opcode & 7, registers & 15
        if opcode == _LD_IMM64:
            known = _with(at.known, to, self.maps.get(at.place))
            yield replace(at, place=at.place + 2, known=known)
        elif opcode == _EXIT:
            if not at.counted:
                ways.uncounted_exits.add(at.place)
        elif opcode == _CALL:
            yield self._called(at, immediate, ways)
        elif opcode == _ALWAYS:
            yield replace(at, place=at.place + 1 + offset)
        elif kind in (_JUMP, _JUMP32):
            yield replace(at, place=at.place + 1)
            yield replace(at, place=at.place + 1 + offset)
        else:
            known = at.known if kind in _STORES else _with(at.known, to, self._value(at))
            yield replace(at, place=at.place + 1, known=known)

    def _value(self, at: At) -> str | int | None:
        opcode, registers, _, immediate = self.instructions[at.place]
        if opcode in (_MOVE_NUMBER, _MOVE_NUMBER32):
            return int(immediate)
        return at.known[registers >> 4] if opcode in (_MOVE, _MOVE32) else None

    @staticmethod
    def _called(at: At, helper: int, ways: Ways) -> At:
        counted = at.counted or (helper == _LOOK_UP and at.known[1] == COUNTERS)
        assert helper != _LOOK_UP or isinstance(at.known[1], str), f"{at}: which map is that?"
        if helper == _TAIL_CALL:
            assert at.known[2] == CALLS, f"{at}: which programs does it call?"
            place = at.known[3]
            assert not isinstance(place, str)
            ways.calls.add((place, at.counted))
        return At(at.place + 1, counted, _NOTHING[:6] + at.known[6:])


def _with(known: Known, register: int, value: str | int | None) -> Known:
    return (*known[:register], value, *known[register + 1 :])


def _merged(one: Known, other: Known) -> Known:
    return tuple(a if a == b else None for a, b in zip(one, other, strict=True))


def ways_of(image: Image, program: Program, counted: bool) -> Ways:
    """Every way through the program from its first instruction on."""
    code, ways = _Code(image, program), Ways()
    seen: dict[tuple[int, bool], Known] = {}
    waiting = [At(0, counted)]
    while waiting:
        at = waiting.pop()
        before = seen.get((at.place, at.counted))
        known = at.known if before is None else _merged(before, at.known)
        if known == before:
            continue
        seen[at.place, at.counted] = known
        waiting.extend(code.next_ones(replace(at, known=known), ways))
    return ways


def uncounted(
    images: Sequence[Image], calls: Sequence[str], called_only: Sequence[str]
) -> dict[str, list[int]]:
    """The instructions where a program ends and nothing was counted, by program.

    `calls`: the programs of `colo_calls`; `called_only`: those that begin in no other way. A
    place that is read from a map is one of the others: the frame begins again with it.
    """
    programs = {one.name: (image, one) for image in images for one in image.programs}
    first = [name for name in programs if name not in called_only]
    again = [name for name in calls if name in first]
    waiting = [(name, False) for name in first]
    found: dict[str, set[int]] = {}
    seen: set[tuple[str, bool]] = set()
    while waiting:
        name, counted = waiting.pop()
        if (name, counted) in seen:
            continue
        seen.add((name, counted))
        ways = ways_of(*programs[name], counted)
        found.setdefault(name, set()).update(ways.uncounted_exits)
        for place, before in ways.calls:
            called = again if place is None else [calls[place]]
            waiting.extend((one, before) for one in called)
    return {name: sorted(places) for name, places in found.items() if places}


assert _INSTRUCTION.size == INSTRUCTION_BYTES
