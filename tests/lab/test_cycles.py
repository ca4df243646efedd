# SPDX-License-Identifier: GPL-2.0-only
"""One side dies, the pair heals, the next one dies: one connection lives through all of it.

COLO_CYCLES sets how many cycles there are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from colo_ebpf.lab import faults
from tests.matrix.pair import Pair, working

_CYCLES = int(os.environ.get("COLO_CYCLES", "6"))


@dataclass(frozen=True, slots=True)
class Victim:
    """Who dies, and of what."""

    role: str
    what: str


def victim(cycle: int) -> Victim:
    """Every third is the secondary; host and QEMU take turns for either."""
    role = "secondary" if cycle % 3 == 2 else "primary"
    return Victim(role, "host" if cycle % 2 == 0 else "vm")


def _cycle(pair: Pair, dies: Victim) -> str:
    """Kill, heal, wait; returns a line that tells how long it took."""
    place = pair.place()
    pair.clients.roll()
    since = time.monotonic()
    faults.kill(pair.lab, getattr(place, dies.role), dies.what)
    if dies.role == "primary":
        pair.until_taken_over(place.secondary, since)
    pair.until_growth()
    pair.lab.heal()
    pair.lab.wait_protected()
    protected_s = time.monotonic() - since
    pair.until_growth()
    pair.clients.roll()
    order = pair.clients.serving(since)
    survivor = place.primary if dies.role == "secondary" else place.secondary
    assert order in ([survivor], [place.primary, survivor]), "each speaks once, one at a time"
    assert pair.place().primary == survivor
    outage_ms = pair.clients.ledger.gaps.longest_ms(since, time.monotonic())
    what = "QEMU" if dies.what == "vm" else dies.what
    return (
        f"{dies.role}'s {what} killed, {survivor} serves: ledger silent {outage_ms:.0f} ms, "
        f"protected again after {protected_s:.1f} s"
    )


@pytest.mark.timeout(120 + 60 * _CYCLES)
def test_a_connection_lives_through_all(say: Callable[[str], None]) -> None:
    with working("colotesty") as pair:
        for cycle in range(_CYCLES):
            say(f"cycle {cycle + 1} of {_CYCLES}: {_cycle(pair, victim(cycle))}")
            assert pair.clients.ledger.wrong == []
        pair.verify()


def test_every_kind_of_victim_is_among_six() -> None:
    six = {victim(cycle) for cycle in range(6)}
    assert six == {Victim(r, w) for r in ("primary", "secondary") for w in ("host", "vm")}
