# SPDX-License-Identifier: GPL-2.0-only
"""The dirty bitmaps of a primary's disks, in QMP: every step takes all disks that are copied.

Two kinds are ours. One of a replica marks what was written since that secondary was equal. One of
a round marks what was written since an earlier copy began (`rounds.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from colo_ebpf.control.qemu.cmdline import VmSpec
from colo_ebpf.control.qemu.monitor import Monitors

_PREFIX, _ROUND = "colo-", "round-"


def bitmap_of(instance: str) -> str:
    """Of what was written since this secondary was equal."""
    return _PREFIX + instance.replace("/", "-")


def round_of(number: int) -> str:
    """Of what this round copies; it is marked during the round before."""
    return f"{_ROUND}{number}"


def choose(bitmaps: Iterable[Mapping[str, int]], replicas: Iterable[str]) -> str:
    """The bitmap that every disk has, of the newest replica; "": there is none, copy all."""
    every = list(bitmaps)
    for instance in reversed(tuple(replicas)):
        name = bitmap_of(instance)
        if every and all(name in one for one in every):
            return name
    return ""


class Bitmaps:
    """Those that are ours."""

    def __init__(self, spec: VmSpec, qmp: Monitors) -> None:
        self._spec, self._qmp = spec, qmp

    async def _all(self) -> list[dict[str, dict[str, Any]]]:
        nodes = await self._qmp.run("query-named-block-nodes", flat=True)
        by_name = {node["node-name"]: node.get("dirty-bitmaps", []) for node in nodes}
        return [
            {
                one["name"]: one
                for one in by_name[disk.quorum]
                if one.get("name", "").startswith((_PREFIX, _ROUND))
            }
            for disk in self._spec.copied_disks
        ]

    async def recording(self) -> list[dict[str, int]]:
        """Of each disk, by name: bytes that are marked, and more are with each write."""
        return [
            {name: one["count"] for name, one in bitmaps.items() if one["recording"]}
            for bitmaps in await self._all()
        ]

    async def marked_bytes(self, name: str) -> int:
        """Of all disks."""
        return sum(one[name]["count"] for one in await self._all())

    async def begin(self, names: Iterable[str]) -> None:
        """They mark what is written from now on."""
        for name in names:
            for disk in self._spec.copied_disks:
                await self._qmp.run("block-dirty-bitmap-add", node=disk.quorum, name=name)

    async def begin_rounds(self, base: str) -> None:
        """Round 0 has what `base` marks by now, round 1 marks what is written from then on."""
        await self._at_once(
            [
                ("add", {"name": round_of(1)}),
                ("add", {"name": round_of(0), "disabled": True}),
                ("merge", {"target": round_of(0), "bitmaps": [base]}),
            ]
        )

    async def next_round(self, number: int) -> None:
        """It marks nothing more, the one behind it does."""
        await self._at_once(
            [
                ("add", {"name": round_of(number + 1)}),
                ("disable", {"name": round_of(number)}),
            ]
        )

    async def _at_once(self, steps: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Between two writes of the guest."""
        actions = [
            {"type": f"block-dirty-bitmap-{step}", "data": {"node": disk.quorum, **words}}
            for disk in self._spec.copied_disks
            for step, words in steps
        ]
        await self._qmp.run("transaction", actions=actions)

    async def drop(self, name: str) -> None:
        """One that every disk has."""
        for disk in self._spec.copied_disks:
            await self._qmp.run("block-dirty-bitmap-remove", node=disk.quorum, name=name)

    async def in_rounds(self) -> bool:
        """A copy in rounds has begun, and was not ended."""
        return any(name.startswith(_ROUND) for one in await self._all() for name in one)

    async def drop_rounds(self) -> None:
        """Of a copy that broke off."""
        await self._drop(_ROUND)

    async def keep_only(self, names: Iterable[str]) -> None:
        """All others say nothing any more."""
        await self._drop(_PREFIX, _ROUND, but=tuple(names))

    async def _drop(self, *prefixes: str, but: tuple[str, ...] = ()) -> None:
        for disk, bitmaps in zip(self._spec.copied_disks, await self._all(), strict=True):
            for name in bitmaps:
                if name.startswith(prefixes) and name not in but:
                    await self._qmp.run("block-dirty-bitmap-remove", node=disk.quorum, name=name)
