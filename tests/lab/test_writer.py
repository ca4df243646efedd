# SPDX-License-Identifier: GPL-2.0-only
"""A guest that writes to an ext4 file system, killed again and again at random moments.

Each record is flushed before its number is told to a client, over one connection that lives
through every kill. Nothing that was told may be missing, and the file system of the survivor is
one that a mount would have made good. COLO_KILLS sets the number of kills, COLO_SEED when and whom;
`make writer` runs fifty.
"""

from __future__ import annotations

import asyncio
import enum
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.control.admin import control_socket
from colo_ebpf.lab import faults, processes
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import HOSTS
from colo_ebpf.lab.workload import PATIENCE_S, served
from tests.capabilities import require
from tests.lab import protected, records

_PORT = 7004
_DISK_BYTES = 48 << 20
_KILLS = int(os.environ.get("COLO_KILLS", "5"))
_SEED = int(os.environ.get("COLO_SEED", "53"))
_LIMIT_S = 60.0
_GROWTH = 20


class Moment(enum.Enum):
    """What the seconds before a kill are counted from."""

    PROTECTED = "after it was protected"
    CHECKPOINT = "into a checkpoint"
    REPLICA = "into the making of a replica"


@dataclass(frozen=True, slots=True)
class Kill:
    """Who dies, of what, how long after which moment."""

    role: str
    what: str
    after_s: float
    moment: Moment = Moment.PROTECTED


def plan(seed: int, kills: int) -> list[Kill]:
    """The same for the same seed. While a replica is made only its own side may die: the other
    one has the only good copy. The first and the last are of a pair. A host takes longer to heal
    than a QEMU."""
    draw, whats = random.Random(seed), ("host", "vm", "vm")
    planned: list[Kill] = []
    while len(planned) < kills:
        role, what = draw.choice(("primary", "primary", "secondary")), draw.choice(whats)
        if draw.random() < 0.4:
            planned.append(Kill(role, what, draw.uniform(0.0, 0.15), Moment.CHECKPOINT))
        else:
            planned.append(Kill(role, what, draw.uniform(0.0, 1.5)))
        if draw.random() < 0.3 and len(planned) < kills - 1:
            what = draw.choice(whats)
            planned.append(Kill("secondary", what, draw.uniform(0.0, 1.0), Moment.REPLICA))
    return planned


class Numbers:
    """What the guest tells, and that each follows the one before."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.last, self.wrong = 0, ""

    async def run(self) -> None:
        """Until it is cancelled, or silence lasts too long."""
        async with asyncio.timeout(PATIENCE_S):
            told = Lines(await served(self._client, _PORT))
            first = int(await told.line())
        assert first == 0
        while True:
            async with asyncio.timeout(PATIENCE_S):
                number = int(await told.line())
            if number != self.last + 1:
                self.wrong = self.wrong or f"{number} was told after {self.last}"
            self.last = number


class Killer:
    """Carries out a plan on a lab."""

    def __init__(self, lab: Lab, numbers: Numbers, reading: asyncio.Task[None]) -> None:
        self._lab, self._numbers, self._reading = lab, numbers, reading

    async def kill(self, one: Kill) -> str:
        """Wait for the moment, kill, wait until it is noticed; returns the survivor."""
        serving = await self._moment(one)
        victim = serving if one.role == "primary" else _other(serving)
        survivor, generation = _other(victim), self._generation()
        await asyncio.to_thread(self._at_once, victim, one.what)
        await self._until(lambda: self._noticed(survivor, generation), "the kill is not noticed")
        if one.what == "host":
            await self.grown()
            await asyncio.to_thread(self._lab.heal)
        return survivor

    async def _moment(self, one: Kill) -> str:
        """Wait for it; the host that serves then."""
        if one.moment is Moment.PROTECTED:
            return await self._protected_for(one.after_s)
        if one.moment is Moment.REPLICA:
            serving = await self._begun()
        else:
            serving = await self._protected_for(0.0)
            control = self._lab.places[serving].run_dir / "ctl.sock"
            await asyncio.to_thread(control_socket.ask, control, "checkpoint")
        await asyncio.sleep(one.after_s)
        return serving

    async def _begun(self) -> str:
        """A replica is being made, or was just finished; the host that serves."""
        await self._until(lambda: any(map(self._pairs, HOSTS)), "no new replica is begun")
        (host,) = filter(self._pairs, HOSTS)
        return host

    async def _protected_for(self, after_s: float) -> str:
        """It still is, so much later; the host that serves. The sides do not say it at one
        moment, so that what they say right after a kill may be of before."""
        for _ in range(100):
            await self._until(self._protected, "not protected")
            await asyncio.sleep(after_s)
            serving = [h for h in HOSTS if self._status(h).get("role") == "primary"]
            if self._protected() and len(serving) == 1:
                return serving[0]
        raise AssertionError("the pair does not stay protected")

    def _at_once(self, victim: str, what: str) -> None:
        """A QEMU may be between two lives."""
        deadline = time.monotonic() + _LIMIT_S
        while not processes.pids_of(self._lab.places[victim].namespace, what):
            assert time.monotonic() < deadline, f"no {what} to kill on {victim}"
            time.sleep(0.01)
        faults.kill(self._lab, victim, what)

    async def grown(self) -> None:
        """The guest goes on telling."""
        wanted = self._numbers.last + _GROWTH
        await self._until(lambda: self._numbers.last >= wanted, f"silent at {self._numbers.last}")

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        def or_ended() -> bool:
            return self._reading.done() or condition()

        await asyncio.to_thread(self._lab.wait, or_ended, what, _LIMIT_S)
        if self._reading.done():
            self._reading.result()

    def _status(self, host: str) -> dict[str, Any]:
        return dict(self._lab.ask(host) or {})

    def _generation(self) -> int:
        records = [self._status(host).get("record") or {} for host in HOSTS]
        return max(int(record.get("generation", 0)) for record in records)

    def _noticed(self, survivor: str, generation: int) -> bool:
        """It serves alone, or has a new replica already."""
        status = self._status(survivor)
        if status.get("role") not in ("solo", "primary"):
            return False
        return not status["protected"] or status["record"]["generation"] > generation

    def _pairs(self, host: str) -> bool:
        other = self._lab.places[_other(host)].namespace
        made = self._status(host).get("state") in ("pairing", "primary")
        return made and bool(processes.pids_of(other, "vm"))

    def _protected(self) -> bool:
        return all(self._status(host).get("protected") for host in HOSTS)


def _other(host: str) -> str:
    return "b" if host == "a" else "a"


async def _kills(lab: Lab, kills: list[Kill], say: Callable[[str], None]) -> tuple[str, int]:
    """Carry them out; (who survived the last, the last number that was told)."""
    numbers = Numbers(Client(lab.namespace_of("client"), lab.guest_address))
    reading = asyncio.create_task(numbers.run())
    killer = Killer(lab, numbers, reading)
    survivor = ""
    try:
        await killer.grown()
        for number, one in enumerate(kills, 1):
            began, before = time.monotonic(), numbers.last
            survivor = await killer.kill(one)
            said = f"{numbers.last - before} records, {time.monotonic() - began:.1f} s"
            say(f"kill {number} of {len(kills)}: {_words(one)}, {survivor} survives: {said}")
            assert numbers.wrong == ""
        await killer.grown()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    return survivor, numbers.last


def _whole(lab: Lab, host: str) -> bool:
    """The image of this host has everything."""
    return (lab.ask(host) or {}).get("disk") in ("whole", "replicated")


def _words(one: Kill) -> str:
    what = "QEMU" if one.what == "vm" else one.what
    return f"{one.role}'s {what}, {one.after_s:.2f} s {one.moment.value}"


@pytest.mark.parametrize("disks", ["two disks", "one disk"])
@pytest.mark.timeout(180 + 30 * _KILLS)
def test_nothing_told_is_lost(tmp_path: Path, say: Callable[[str], None], disks: str) -> None:
    require("root", "bpf", "qemu", "guest", "e2fsprogs")
    image = tmp_path / "ext4.raw"
    records.make(image, _DISK_BYTES)
    guest = choose(Wanted(shared_disk=disks == "one disk"))
    guest = replace(guest, disk=str(image), append=f"{guest.append} colo.fs=vda")
    with protected("colotestw", guest) as lab:
        say(f"seed {_SEED}, COLO_SEED sets it")
        survivor, told = asyncio.run(_kills(lab, plan(_SEED, _KILLS), say))
        lab.wait(lambda: _whole(lab, survivor), "the overlays are not merged", _LIMIT_S)
        faults.kill(lab, survivor, "host")
        count, wrong = records.examine(lab.places[survivor].disk, tmp_path)
        say(f"{told} records were told, {count} are on the disk of {survivor}")
    assert wrong == []
    assert count >= told
