# SPDX-License-Identifier: GPL-2.0-only
"""Failovers with real guests: what the client sees, and where the time goes.

One client adds entries to the guest's ledger over one connection all the while: every answer
carries a sum over all entries before, so the run itself proves that nothing was lost. The VM that
serves, or its host, is killed; then the pair is healed, and the other one is next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from colo_ebpf.bench import names
from colo_ebpf.bench.pair.vm_pair import Pair
from colo_ebpf.bench.results import Curve, Recorder
from colo_ebpf.clock import boot_ns
from colo_ebpf.errors import BenchError
from colo_ebpf.lab import faults
from colo_ebpf.lab.demo import Wire
from colo_ebpf.lab.topology import HOSTS
from colo_ebpf.lab.workload import Ledger, until_serving

PART = "control"
PACE_S = 0.005
_BEFORE_S, _AFTER_S = 1.0, 2.0
_SAMPLE_S = 0.002
_DETECTED = "bidding to go on alone"
_ALONE = "alone, unprotected"
_PAIRS = "copying the disk"  # the first that a new pairing does to the VM that serves
_NAMES = {"vm": "QEMU killed", "host": "host killed"}


@dataclass(frozen=True, slots=True)
class Failover:
    """One of them; times in milliseconds since the kill began."""

    silence_ms: float  # the client's longest that begins before a new pair is made
    healing_ms: float  # its longest that begins while that is made
    detected_ms: float  # the survivor bids
    active_ms: float  # the record says that it is alone
    frame_ms: float  # its first frame at the client's switch
    protected_ms: float  # of two hosts again, both up


@dataclass(frozen=True, slots=True)
class _Sample:
    """Of the survivor's status."""

    at: float
    held: int  # frames
    loaded_epoch: int


def spread(recorder: Recorder, what: str, found: Sequence[Failover]) -> None:
    """A row per phase."""
    lane = _NAMES[what]
    since = "the kill" if what == "vm" else "the host is back"
    for measure, values in (
        ("client outage", [one.silence_ms for one in found]),
        ("longest silence until protected again", [one.healing_ms for one in found]),
        ("kill to detected", [one.detected_ms for one in found]),
        ("kill to record active", [one.active_ms for one in found]),
        ("kill to the survivor's first frame", [one.frame_ms for one in found]),
    ):
        recorder.add(PART, measure, lane, "ms", values=values, note=f"{len(found)} kills")
    again = [one.protected_ms / 1000 for one in found]
    recorder.add(PART, "protected again", lane, "s", values=again, note=f"from when {since}")


def said_after(history: list[dict[str, Any]], since_ns: int, start: str) -> int:
    """When the daemon first said such a sentence; BenchError if it did not."""
    for line in history:
        if line["at_ns"] >= since_ns and line["sentence"].startswith(start):
            return int(line["at_ns"])
    raise BenchError(f"the survivor did not say {start!r}")


class Failovers:
    """Kills one after the other, under one client."""

    def __init__(self, recorder: Recorder, pair: Pair) -> None:
        self._recorder, self._pair = recorder, pair
        self._client = pair.client()
        self._ledger = Ledger(self._client, PACE_S)
        self._stop = asyncio.Event()
        self._wires: dict[str, Wire] = {}

    async def run(self, kills: Sequence[str]) -> dict[str, list[Failover]]:
        """`kills`: "vm" or "host", in order. The last host kill becomes the timeline."""
        found: dict[str, list[Failover]] = {"vm": [], "host": []}
        await until_serving(self._client)
        self._wires = {host: Wire(self._client, f"{host}0") for host in HOSTS}
        work = asyncio.create_task(self._ledger.run(self._stop))
        drawn = max((n for n, what in enumerate(kills) if what == "host"), default=-1)
        try:
            for number, what in enumerate(kills):
                one = await self._one(what, draw=number == drawn)
                found[what].append(one)
                self._recorder.say(f"{_NAMES[what]}: {number + 1} of {len(kills)}: {_told(one)}")
                if work.done():
                    break
        finally:
            self._stop.set()
            results = await asyncio.gather(work, return_exceptions=True)
            for wire in self._wires.values():
                wire.close()
            if self._ledger.lines is not None:
                self._ledger.lines.close()
        self._check(results[0])
        return found

    def _check(self, error: object) -> None:
        if isinstance(error, BaseException):
            raise BenchError(f"the client lost the guest: {error!r}") from error
        if self._ledger.wrong:
            raise BenchError(f"the guest lost or changed entries: {self._ledger.wrong[:3]}")

    async def _one(self, what: str, draw: bool) -> Failover:
        pair, lab = self._pair, self._pair.lab
        loser = await asyncio.to_thread(pair.serving)
        survivor = HOSTS[1 - HOSTS.index(loser)]
        await asyncio.sleep(_BEFORE_S)  # so much of undisturbed work comes before
        samples = asyncio.create_task(self._sample(survivor)) if draw else None
        at, at_ns = time.monotonic(), boot_ns()
        await asyncio.to_thread(faults.kill, lab, loser, what)
        told = await pair.until(survivor, lambda s: _has_gone_on(s, at_ns), "does not go on")
        await asyncio.sleep(_AFTER_S)  # drawn, and a silence ends within it or counts as so long
        if samples is not None:
            samples.cancel()
            self._draw(at, (await asyncio.gather(samples, return_exceptions=True))[0])
        healed_ns = at_ns
        if what == "host":
            await asyncio.to_thread(lab.heal)
            healed_ns = boot_ns()
        await pair.until_protected()
        protected, history = time.monotonic(), told["history"]
        healed = await asyncio.to_thread(pair.status, survivor)
        pairs_ns = said_after(healed["history"], at_ns, _PAIRS)
        pairs = at + (pairs_ns - at_ns) / 1e9
        return Failover(
            silence_ms=self._ledger.gaps.longest_begun_ms(at - 0.1, pairs),
            healing_ms=self._ledger.gaps.longest_begun_ms(pairs, protected),
            detected_ms=(said_after(history, at_ns, _DETECTED) - at_ns) / 1e6,
            active_ms=(said_after(history, at_ns, _ALONE) - at_ns) / 1e6,
            frame_ms=self._first_frame_ms(survivor, at),
            protected_ms=(boot_ns() - healed_ns) / 1e6,
        )

    def _first_frame_ms(self, survivor: str, at: float) -> float:
        return min((t - at) * 1000 for t in self._wires[survivor].at if t > at)

    # -- the timeline ----------------------------------------------------------------------

    async def _sample(self, survivor: str) -> list[_Sample]:
        """The survivor, moment by moment, until cancelled."""
        found: list[_Sample] = []
        try:
            while True:
                status = await asyncio.to_thread(self._pair.lab.ask, survivor)
                if status is not None:
                    held, loaded = status["held"]["frames"], status["checkpoints"]["loaded_epoch"]
                    found.append(_Sample(time.monotonic(), int(held), int(loaded)))
                await asyncio.sleep(_SAMPLE_S)
        except asyncio.CancelledError:
            return found

    def _draw(self, at: float, samples: object) -> None:
        assert isinstance(samples, list)

        def line(label: str, y: str, points: list[tuple[float, float]], moments: bool) -> None:
            shown = [((t - at) * 1000, v) for t, v in points if -_BEFORE_S <= t - at <= _AFTER_S]
            self._recorder.curve(
                Curve(
                    part=PART,
                    plot=names.TIMELINE_PLOT,
                    line=label,
                    x="ms since the kill",
                    y=y,
                    points=tuple(shown),
                    moments=moments,
                )
            )

        answers = zip(self._ledger.gaps.at, self._ledger.took_s, strict=True)
        line("client: one entry", "ms", [(t, s * 1000) for t, s in answers], False)
        line("frames held", "frames", [(one.at, float(one.held)) for one in samples], False)
        loads = [b.at for a, b in pairwise(samples) if a.loaded_epoch < b.loaded_epoch]
        if loads:
            line(names.CHECKPOINT, "", [(t, 0.0) for t in loads], True)
        line(names.KILL, "", [(at, 0.0)], True)


def _has_gone_on(status: dict[str, Any], since_ns: int) -> bool:
    return any(
        line["at_ns"] >= since_ns and line["sentence"].startswith(_ALONE)
        for line in status["history"]
    )


def _told(one: Failover) -> str:
    return (
        f"client {one.silence_ms:.0f} ms, detected {one.detected_ms:.0f}, "
        f"active {one.active_ms:.0f}, first frame {one.frame_ms:.0f} ms, "
        f"protected after {one.protected_ms / 1000:.1f} s, silent {one.healing_ms:.0f} ms for it"
    )
