# SPDX-License-Identifier: GPL-2.0-only
"""Planned operation, fact by fact: what an operator asks for, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from colo_ebpf.control import facts, planned, record
from colo_ebpf.control.decide import decide
from colo_ebpf.control.epoch import Loaded, Reason
from colo_ebpf.control.facts import PeerFacts, Read, Snapshot, State, Swap, TurnFacts, VmFacts, Wish
from colo_ebpf.control.peer import Answer
from colo_ebpf.control.record import Record
from colo_ebpf.control.wishes import Wishes
from colo_ebpf.model import VmHealth, VmRole
from tests.unit.test_decide import (
    ACTIVE,
    HEARD,
    MS,
    NOW,
    PAIRED,
    PEER_B,
    SILENT,
    A,
    B,
    _at,
    _says,
    _silent,
)

ASKED = NOW - 100 * MS
WISH = Wish("t1", ASKED, B)
LATER = Loaded(
    6, ASKED + MS, ASKED + 20 * MS, MS, MS, armed=True, cause=Reason.SWITCHOVER
)  # triggered after it was asked
LOADED = TurnFacts(loaded=LATER, triggered_ns=LATER.triggered_ns, idle=True)
TAKES_OVER = record.claim(PAIRED, B)


def _wished(**change: Any) -> Snapshot:
    return _at("a", PAIRED, wish=WISH, **change)


def _swap(s: Snapshot) -> Record | None:
    step = decide(s).step
    return step.new if isinstance(step, Swap) else None


# --- switchover ---------------------------------------------------------------------------


@pytest.mark.parametrize("me", ["a", "b"])
def test_a_pair_that_is_well_can_change_places(me: str) -> None:
    s = _at(me, PAIRED)
    assert planned.no_switchover(s, decide(s)) == ""


@pytest.mark.parametrize(
    ("s", "why"),
    [
        (_at("a", ACTIVE), "there is no protected pair: alone, unprotected"),
        (_silent(_at("a", PAIRED)), "b is not heard"),
        (_silent(_at("a", PAIRED), management=HEARD), "the link is cut"),
        (_says("a", PAIRED, fit=False, want="its disk failed"), "the VM on b is unfit: its disk"),
        (_says("a", PAIRED, fit=False), "the VM on b is unfit: see its log"),
        (_says("a", PAIRED, health=VmHealth.GONE), "b says that its VM is gone"),
        (_says("a", PAIRED, state="joining"), "b says that it is joining"),
        (
            _at("a", PAIRED, peer=PeerFacts(PEER_B, HEARD, HEARD, away_since_ns=NOW)),
            "the daemon on b is away",
        ),
        (
            _at("b", PAIRED, vm=VmFacts(B, VmRole.SECONDARY, alive=True, fit=False)),
            "the VM on b is unfit to take over",
        ),
        (_wished(), "another planned operation is under way"),
    ],
)
def test_it_is_refused_before_it_begins(s: Snapshot, why: str) -> None:
    assert planned.no_switchover(s, replace(decide(s), answer=None)).startswith(why)


def test_a_last_checkpoint_comes_first() -> None:
    d = decide(_wished())
    assert (d.state, d.ask, d.step, d.still) == (State.PRIMARY, Reason.SWITCHOVER, None, False)
    assert d.sentence == "switchover to b: taking a last checkpoint"
    under_way = TurnFacts(loaded=LATER, triggered_ns=ASKED + 30 * MS)
    d = decide(_wished(turns=under_way))
    assert (d.ask, d.step, d.still) == (None, None, False), "asked for once"


@pytest.mark.parametrize(
    "loaded", [replace(LATER, armed=False), replace(LATER, triggered_ns=ASKED - MS)]
)
def test_one_that_is_older_or_was_not_armed_does_not_count(loaded: Loaded) -> None:
    turns = TurnFacts(loaded=loaded, triggered_ns=loaded.triggered_ns, idle=True)
    d = decide(_wished(turns=turns))
    assert (d.ask, d.step) == (Reason.SWITCHOVER, None)


def test_then_the_secondarys_claim_is_written_and_no_other_checkpoint_begun() -> None:
    d = decide(_wished(turns=LOADED))
    assert _swap(_wished(turns=LOADED)) == TAKES_OVER
    assert d.still
    assert d.mode is decide(_at("a", PAIRED)).mode, "what both agree on leaves until it is written"


def test_the_claim_may_go_back_to_the_old_primary() -> None:
    assert (TAKES_OVER.owner, TAKES_OVER.other) == (B, A)
    assert decide(_at("a", TAKES_OVER, wish=WISH)).answer is None
    back = decide(_at("a", record.concede(TAKES_OVER, B), wish=WISH))
    assert back.answer is not None
    assert back.answer.sentence.startswith("no switchover: b did not take over; leaving the pair")


def test_its_end_is_told_with_how_long_nothing_left() -> None:
    wish = replace(WISH, withheld_ns=NOW - 70 * MS)
    d = decide(_at("a", record.activate(TAKES_OVER), wish=wish))
    assert d.answer == Answer("t1", True, "b serves now", 70 * MS)


def test_the_secondary_that_was_asked_waits_for_the_answer_of_the_other() -> None:
    active = record.activate(TAKES_OVER)
    s = _at("b", active, wish=WISH, record_since_ns=NOW - MS)
    assert decide(s).answer is None
    said = Answer("t1", True, "b serves now", 70 * MS)
    state = msgspec.structs.replace(s.peer.state, answer=said)
    assert decide(replace(s, peer=replace(s.peer, state=state))).answer == said
    late = _silent(s)
    assert decide(late).answer == Answer("t1", True, "b serves now")


@pytest.mark.parametrize(
    ("s", "why"),
    [
        (_silent(_wished()), "b is not heard"),
        (replace(_says("a", PAIRED, fit=False, want="x"), wish=WISH), "the VM on b is unfit: x"),
        (_wished(turns=TurnFacts(broken="checkpoint stuck")), "checkpoint stuck"),
        (
            replace(_wished(), wish=replace(WISH, at_ns=NOW - 11_000 * MS)),
            "no checkpoint was loaded within 10000 ms",
        ),
    ],
)
def test_something_in_its_way_ends_it(s: Snapshot, why: str) -> None:
    d = decide(s)
    assert d.answer == Answer("t1", False, f"no switchover: {why}")


def test_an_arbiter_that_says_no_ends_it_and_the_pair_goes_on() -> None:
    failed = facts.Failure(Swap(PAIRED, TAKES_OVER), "no answer", NOW - MS)
    d = decide(_wished(turns=LOADED, failure=failed))
    assert d.answer is not None
    assert "the record cannot be changed: no answer" in d.answer.sentence
    assert (d.state, d.still) == (State.PRIMARY, False)


def test_whether_it_was_written_is_looked_up() -> None:
    failed = facts.Failure(Swap(PAIRED, TAKES_OVER), "no answer", NOW - MS)
    doubt = _wished(turns=LOADED, failure=failed, pending=TAKES_OVER, last_read_ns=0)
    d = decide(doubt)
    assert d.answer is not None
    assert "is not known until the arbiter answers" in d.answer.sentence
    d = decide(replace(doubt, wish=None))
    assert (d.step, d.still) == (Read(), False)


def test_while_it_is_being_written_nothing_ends_it() -> None:
    s = _silent(_wished(turns=LOADED, pending=TAKES_OVER), link=SILENT, management=SILENT)
    assert decide(s).answer is None


def test_the_primary_takes_up_what_the_secondary_was_asked() -> None:
    wishes, peer = Wishes("a"), msgspec.structs.replace(PEER_B, switchover="t2")
    wishes.hear(peer, TAKES_OVER, NOW)
    assert wishes.wish is None, "only while the record says that this host is the primary"
    wishes.hear(peer, PAIRED, NOW)
    assert wishes.wish == Wish("t2", NOW, B, here=False)
    assert wishes.asked_of_peer == ""
    wishes.settle(Answer("t2", False, "no switchover: x"))
    wishes.hear(peer, PAIRED, NOW)
    assert wishes.wish is None, "answered once"


def test_only_the_secondary_passes_it_on() -> None:
    for host, passed_on in (("a", ""), ("b", "t1")):
        wishes = Wishes(host)
        wishes.wish = WISH
        assert wishes.asked_of_peer == passed_on
