# SPDX-License-Identifier: GPL-2.0-only
"""Two daemons agree on the link's keys, whatever happens to them meanwhile."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from colo_ebpf.control.peer.link_keys import (
    DAY_NS,
    DRAINED_NS,
    UNDER_WAY_NS,
    Heard,
    LetGo,
    LinkKeys,
    Offer,
    Open,
    SealWith,
    fresh_offer,
    link_key,
)

S = 1_000_000_000


@dataclass
class _Kernel:
    """States of a host: by SPI the offer they were made of."""

    opens: dict[int, Offer] = field(default_factory=dict)
    seals: list[Offer] = field(default_factory=list)


class _Side:
    def __init__(self, boot: str) -> None:
        self.link, self.kernel = LinkKeys(boot), _Kernel()
        self.ever: list[Offer] = []  # sealed with

    def says(self) -> Heard:
        link = self.link
        return Heard(link.boot, link.offer, link.seals_with, link.sealed_with)

    def step(self, said: Heard | None, vni: int, now_ns: int) -> bool:
        if said is not None:
            self.link = self.link.heard(said, now_ns)
        action = self.link.next(said, vni, now_ns)
        match action:
            case None:
                return False
            case Open(offer):
                self.kernel.opens[offer.spi] = offer
            case SealWith(offer):
                self.ever.append(offer)
                self.kernel.seals.append(offer)
            case LetGo(spi, inbound):
                if inbound:
                    self.kernel.opens = {spi: self.kernel.opens[spi]}
                else:
                    self.kernel.seals = [one for one in self.kernel.seals if one.spi == spi]
        self.link = self.link.done(action, vni, now_ns)
        return True

    def reaches(self, other: _Side) -> bool:
        """What it sends is opened there, whichever of its keys the kernel takes."""
        seals = self.kernel.seals
        return bool(seals) and all(one.spi in other.kernel.opens for one in seals)


def _agree(a: _Side, b: _Side, vni: int = 1, now_ns: int = 0) -> int:
    for count in range(20):
        did = [a.step(b.says(), vni, now_ns), b.step(a.says(), vni, now_ns)]
        if not any(did):
            return count
    pytest.fail("they go on for ever")


def _pair() -> tuple[_Side, _Side]:
    a, b = _Side("a1"), _Side("b1")
    _agree(a, b)
    return a, b


def test_both_ways_are_sealed_in_a_few_heartbeats() -> None:
    a, b = _Side("a1"), _Side("b1")
    assert not a.link.agreed
    assert _agree(a, b) <= 4
    assert a.link.agreed
    assert b.link.agreed
    assert a.reaches(b)
    assert b.reaches(a)


def test_nothing_is_done_while_nothing_is_heard() -> None:
    a = _Side("a1")
    assert not a.step(None, 1, 0)


@pytest.mark.parametrize("why", ["pairing", "day", "restart", "key of the pair"])
def test_a_new_key_is_opened_before_it_is_used_and_the_old_one_as_long(why: str) -> None:
    a, b = _pair()
    old = a.kernel.seals[-1]
    vni, now_ns = 1, 20 * S
    if why == "pairing":
        vni = 2
    elif why == "day":
        now_ns = DAY_NS
    elif why == "key of the pair":
        a.link, b.link = replace(a.link, key="another"), replace(b.link, key="another")
    else:
        a.link = LinkKeys("a2")
    while b.step(a.says(), vni, now_ns) or a.step(b.says(), vni, now_ns):
        assert a.reaches(b)
        assert b.reaches(a)
    assert a.kernel.seals[-1] != old
    assert old.spi in b.kernel.opens
    now_ns += UNDER_WAY_NS
    _agree(a, b, vni, now_ns)
    assert old.spi not in b.kernel.opens
    assert len(b.kernel.opens) == 1
    assert a.reaches(b)
    assert b.reaches(a)


def test_an_old_key_is_kept_for_a_peer_that_does_not_use_the_new_one() -> None:
    a, b = _pair()
    said = a.says()
    for second in range(1000):
        b.step(said, 2, second * S)  # what a says does not arrive any more
    assert a.reaches(b)


def test_an_offer_for_an_earlier_run_is_not_taken() -> None:
    """Its key may have sealed already: no number may be used twice with it."""
    a, b = _pair()
    said, count = b.says(), len(a.ever)
    a.link = LinkKeys("a2")
    a.step(said, 1, S)
    assert len(a.ever) == count


@pytest.mark.parametrize(("opened", "sealing"), [(True, False), (False, True), (True, True)])
def test_keys_that_others_remove_are_made_anew(opened: bool, sealing: bool) -> None:
    a, b = _pair()
    if opened:
        a.kernel.opens.clear()
    if sealing:
        a.kernel.seals.clear()
    a.link = a.link.lost(opened=opened, sealing=sealing)
    _agree(a, b)
    _agree(a, b, now_ns=DRAINED_NS)
    assert a.reaches(b)
    assert b.reaches(a)


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_no_key_seals_twice_and_they_agree_in_the_end(seed: int) -> None:
    """Heartbeats are lost; daemons restart, hosts too; pairings come and go; others remove keys."""
    rng, now_ns, runs, vni = random.Random(seed), 0, 2, 1
    sides = [_Side("run0"), _Side("run1")]
    heard: list[Heard | None] = [None, None]
    for _ in range(300):
        now_ns += rng.randrange(3 * S)
        at = rng.randrange(2)
        side, said = sides[at], sides[1 - at].says()
        what = rng.random()
        if what < 0.5:
            heard[at] = said
        elif what < 0.9:
            side.step(heard[at], vni, now_ns)
        elif what < 0.93:
            vni = rng.randrange(3)
        elif what < 0.96:
            side.link, heard[at], runs = LinkKeys(f"run{runs}"), None, runs + 1
            if rng.random() < 0.5:
                side.kernel = _Kernel()
        elif what < 0.98:
            side.kernel = _Kernel()
            side.link = side.link.lost(opened=True, sealing=True)
    for _ in range(10):
        _agree(*sides, vni, now_ns)
        now_ns += UNDER_WAY_NS
    a, b = sides
    for one, other in ((a, b), (b, a)):
        assert one.reaches(other)
        assert len(set(one.ever)) == len(one.ever)
        assert len(other.kernel.opens) == 1
        assert len(one.kernel.seals) == 1


def test_a_key_is_of_one_offer_and_one_direction() -> None:
    pair_key, offer = b"the pair's key....", Offer(0x1234, bytes(16), "a1")
    one = link_key(pair_key, offer, "a", "b", 36)
    others = [
        link_key(b"another pair's key", offer, "a", "b", 36),
        link_key(pair_key, offer, "b", "a", 36),
        link_key(pair_key, Offer(0x1235, bytes(16), "a1"), "a", "b", 36),
        link_key(pair_key, Offer(0x1234, b"\1" * 16, "a1"), "a", "b", 36),
        link_key(pair_key, Offer(0x1234, bytes(16), "a2"), "a", "b", 36),
    ]
    assert len(one) == 36
    assert one not in others
    assert len(set(others)) == len(others)


def test_no_reserved_number_is_offered() -> None:
    for first in (bytes(4), b"\xff" * 4, b"\0\0\1\0"):
        assert (
            0x100
            <= fresh_offer("run", "key", lambda n, f=first: f.ljust(n, b"\0")[:n]).spi
            < 1 << 32
        )
