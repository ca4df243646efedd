# SPDX-License-Identifier: GPL-2.0-only
"""How long a checkpoint stops the VM when so much memory was written since the last one.

A program of the guest writes a word into each page, in both VMs; then a checkpoint is asked for.
From the STOP to the RESUME of the primary's QEMU, ours and stock in turn.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from colo_ebpf.bench.apps import names
from colo_ebpf.bench.apps.clients import Where
from colo_ebpf.bench.apps.lane_ours import OursLane
from colo_ebpf.bench.apps.rounds import first_line
from colo_ebpf.bench.pair.pause import ours_ms
from colo_ebpf.bench.pair.stock import StockPair
from colo_ebpf.bench.results import Curve, Recorder
from colo_ebpf.errors import BenchError, ColoError
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.topology import Guest, client_namespace

SIZES_MIB = (0, 5, 10, 20, 40, 80, 160)
TARGET_MIB = 20
_PORT = 7005
_ANSWERS_S = 20.0
_TRIES = 5
_REST_S = 0.2  # the VM that answered last is ready, too
_MULTIFD_SINCE = (11, 0, 0)  # under COLO


@dataclass(frozen=True, slots=True)
class Amounts:
    """`turns` of each lane; `readings` of each size in a turn."""

    turns: int = 2
    readings: int = 3
    sizes_mib: tuple[int, ...] = SIZES_MIB


class Pair(Protocol):
    """A pair under COLO."""

    async def taken(self) -> int:
        """Grows with every checkpoint."""

    async def pause_ms(self) -> float:
        """Take a checkpoint now."""


class _OursPair:
    def __init__(self, lane: OursLane) -> None:
        self._pair = lane.pair

    async def taken(self) -> int:
        status = await asyncio.to_thread(self._pair.status, "a")
        return int(status["checkpoints"]["total"])

    async def pause_ms(self) -> float:
        return await ours_ms(self._pair, "a")


class _StockPair:
    def __init__(self, pair: StockPair) -> None:
        self._pair = pair

    async def taken(self) -> int:
        return len(self._pair.pauses_ms(0))

    async def pause_ms(self) -> float:
        return await self._pair.checkpoint_ms()


Opened = Callable[[], AbstractAsyncContextManager[Pair]]
Values = dict[int, list[float]]


class Pauses:
    """Both lanes of a lab of this name."""

    def __init__(self, recorder: Recorder, name: str, guest: Guest, amounts: Amounts) -> None:
        self._recorder, self._name, self._guest = recorder, name, guest
        self._amounts = amounts
        self._found: dict[str, Values] = defaultdict(lambda: defaultdict(list))
        self._broke: dict[str, str] = {}

    async def measure(self) -> None:
        """All turns; then the rows and the lines of the plot."""
        lanes = {
            names.OURS: self._ours,
            names.STOCK: self._stock,
            names.MULTIFD: self._multifd,
        }
        for _ in range(self._amounts.turns):
            for lane, opened in lanes.items():
                await self._turn(lane, opened)
        for lane in lanes:
            self._record(lane)

    async def _turn(self, lane: str, opened: Opened) -> None:
        if lane in self._broke:
            return
        self._recorder.say(f"{names.PART}: pauses, {lane}")
        try:
            async with opened() as pair:
                await self._sizes(self._found[lane], pair)
        except ColoError as e:
            self._broke[lane] = names.BROKE + first_line(e)

    async def _sizes(self, found: Values, pair: Pair) -> None:
        lines = Lines(await Client(*self._where()).connect(_PORT))
        try:
            await _dirty(lines, max(self._amounts.sizes_mib))  # from here on no page is new
            await pair.pause_ms()
            for _ in range(self._amounts.readings):
                for size_mib in self._amounts.sizes_mib:
                    found[size_mib] += await _reading(pair, lines, size_mib)
        finally:
            lines.close()

    def _where(self) -> tuple[str, str]:
        where = Where(client_namespace(self._name), self._guest.address)
        return where.namespace, where.address

    @asynccontextmanager
    async def _ours(self) -> AsyncIterator[Pair]:
        lane = OursLane(self._name, self._guest)
        async with lane.running():
            yield _OursPair(lane)

    @asynccontextmanager
    async def _stock(self) -> AsyncIterator[Pair]:
        stock = StockPair(self._name, self._guest, self._guest.accel)
        async with stock.running():
            version = await stock.version()
            if version < _MULTIFD_SINCE:
                told = ".".join(map(str, version))
                self._broke[names.MULTIFD] = f"QEMU {told}: its COLO has no multifd"
            yield _StockPair(stock)

    @asynccontextmanager
    async def _multifd(self) -> AsyncIterator[Pair]:
        stock = StockPair(self._name, self._guest, self._guest.accel, ("multifd",))
        async with stock.running():
            yield _StockPair(stock)

    def _record(self, lane: str) -> None:
        if lane == names.MULTIFD and not self._found[lane]:
            sizes_mib: tuple[int, ...] = (TARGET_MIB,)
        else:
            sizes_mib = self._amounts.sizes_mib
        note = self._broke.get(lane, f"{self._guest.memory_mib} MiB, {self._guest.accel}")
        points = []
        for size_mib in sizes_mib:
            values = self._found[lane][size_mib]
            measure = names.PAUSE.format(size_mib)
            row = self._recorder.add(names.PART, measure, lane, "ms", values=values, note=note)
            if values:
                points.append((float(size_mib), row.median))
        if points:
            self._recorder.curve(
                Curve(
                    part=names.PART,
                    plot=names.PAUSE_PLOT,
                    line=lane,
                    x="written since the last checkpoint, MiB",
                    y="pause, ms",
                    points=tuple(points),
                )
            )


async def _reading(pair: Pair, lines: Lines, size_mib: int) -> list[float]:
    """One pause. None if each time another checkpoint came first, and carried what was written."""
    for _ in range(_TRIES):
        before = await pair.taken()
        if size_mib:
            await _dirty(lines, size_mib)
        await asyncio.sleep(_REST_S)
        if await pair.taken() == before:
            return [await pair.pause_ms()]
        await pair.pause_ms()  # what is left of it
    return []


async def _dirty(lines: Lines, size_mib: int) -> None:
    """BenchError if the guest does not say that it is done."""
    try:
        async with asyncio.timeout(_ANSWERS_S):
            said = await lines.ask(f"DIRTY {size_mib}")
    except (TimeoutError, OSError) as e:
        raise BenchError(f"the guest did not write {size_mib} MiB: {e!r}") from e
    if said != f"DONE {size_mib}":
        raise BenchError(f"the guest was to write {size_mib} MiB and said {said!r}")
