# SPDX-License-Identifier: GPL-2.0-only
"""Planned operation, fact by fact: what an operator asks for, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from colo_ebpf.control.checkpoint.primary import Cause, Loaded
from colo_ebpf.control.core.requests import Requests
from colo_ebpf.control.decision import operator, record, snapshot
from colo_ebpf.control.decision.actions import Read, State, Swap, Yank
from colo_ebpf.control.decision.decide import decide
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.decision.snapshot import (
    CheckpointFacts,
    PeerFacts,
    Request,
    Snapshot,
    VmFacts,
)
from colo_ebpf.control.peer.pause import Pause
from colo_ebpf.control.peer.state import Answer
from colo_ebpf.control.state.files import PauseFile
from colo_ebpf.errors import ControlError
from colo_ebpf.model import Mode, Settled, VmHealth, VmRole
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
REQUEST = Request("t1", ASKED, B)
LATER = Loaded(
    6, ASKED + MS, ASKED + 20 * MS, MS, MS, armed=True, cause=Cause.SWITCHOVER
)  # triggered after it was asked
LOADED = CheckpointFacts(loaded=LATER, triggered_ns=LATER.triggered_ns, idle=True)
TAKES_OVER = record.claim(PAIRED, B)


def _requested(**change: Any) -> Snapshot:
    return _at("a", PAIRED, request=REQUEST, **change)


def _swap(s: Snapshot) -> Record | None:
    step = decide(s).step
    return step.new if isinstance(step, Swap) else None


# --- switchover ---------------------------------------------------------------------------


@pytest.mark.parametrize("me", ["a", "b"])
def test_a_pair_that_is_well_can_change_places(me: str) -> None:
    s = _at(me, PAIRED)
    assert operator.no_switchover(s, decide(s)) == ""


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
        (_requested(), "another planned operation is under way"),
    ],
)
def test_it_is_refused_before_it_begins(s: Snapshot, why: str) -> None:
    assert operator.no_switchover(s, replace(decide(s), answer=None)).startswith(why)


def test_a_last_checkpoint_comes_first() -> None:
    d = decide(_requested())
    assert (d.state, d.ask, d.step, d.still) == (State.PRIMARY, Cause.SWITCHOVER, None, False)
    assert d.sentence == "switchover to b: taking a last checkpoint"
    under_way = CheckpointFacts(loaded=LATER, triggered_ns=ASKED + 30 * MS)
    d = decide(_requested(checkpoints=under_way))
    assert (d.ask, d.step, d.still) == (None, None, False), "asked for once"


@pytest.mark.parametrize(
    "loaded", [replace(LATER, armed=False), replace(LATER, triggered_ns=ASKED - MS)]
)
def test_one_that_is_older_or_was_not_armed_does_not_count(loaded: Loaded) -> None:
    facts = CheckpointFacts(loaded=loaded, triggered_ns=loaded.triggered_ns, idle=True)
    d = decide(_requested(checkpoints=facts))
    assert (d.ask, d.step) == (Cause.SWITCHOVER, None)


def test_then_the_secondarys_claim_is_written_and_no_other_checkpoint_begun() -> None:
    d = decide(_requested(checkpoints=LOADED))
    assert _swap(_requested(checkpoints=LOADED)) == record.hand_over(PAIRED)
    assert d.still
    assert d.mode is decide(_at("a", PAIRED)).mode, "what both agree on leaves until it is written"


def test_the_claim_may_go_back_to_the_old_primary() -> None:
    assert (TAKES_OVER.owner, TAKES_OVER.other) == (B, A)
    assert decide(_at("a", TAKES_OVER, request=REQUEST)).answer is None
    back = decide(_at("a", record.concede(TAKES_OVER, B), request=REQUEST))
    assert back.answer is not None
    assert back.answer.sentence.startswith("no switchover: b did not take over; leaving the pair")


def test_its_end_is_told_with_how_long_nothing_left() -> None:
    request = replace(REQUEST, withheld_ns=NOW - 70 * MS)
    d = decide(_at("a", record.activate(TAKES_OVER), request=request))
    assert d.answer == Answer("t1", True, "b serves now", 70 * MS)


def test_the_secondary_that_was_asked_waits_for_the_answer_of_the_other() -> None:
    active = record.activate(TAKES_OVER)
    s = _at("b", active, request=REQUEST, record_since_ns=NOW - MS)
    assert decide(s).answer is None
    said = Answer("t1", True, "b serves now", 70 * MS)
    state = msgspec.structs.replace(s.peer.state, answer=said)
    assert decide(replace(s, peer=replace(s.peer, state=state))).answer == said
    late = _silent(s)
    assert decide(late).answer == Answer("t1", True, "b serves now")


@pytest.mark.parametrize(
    ("s", "why"),
    [
        (_silent(_requested()), "b is not heard"),
        (
            replace(_says("a", PAIRED, fit=False, want="x"), request=REQUEST),
            "the VM on b is unfit: x",
        ),
        (_requested(checkpoints=CheckpointFacts(broken="checkpoint stuck")), "checkpoint stuck"),
        (
            replace(_requested(), request=replace(REQUEST, at_ns=NOW - 11_000 * MS)),
            "no checkpoint was loaded within 10000 ms",
        ),
    ],
)
def test_something_in_its_way_ends_it(s: Snapshot, why: str) -> None:
    d = decide(s)
    assert d.answer == Answer("t1", False, f"no switchover: {why}")


def test_an_arbiter_that_says_no_ends_it_and_the_pair_goes_on() -> None:
    failed = snapshot.Failure(Swap(PAIRED, TAKES_OVER), "no answer", NOW - MS)
    d = decide(_requested(checkpoints=LOADED, failure=failed))
    assert d.answer is not None
    assert "the record cannot be changed: no answer" in d.answer.sentence
    assert (d.state, d.still) == (State.PRIMARY, False)


def test_whether_it_was_written_is_looked_up() -> None:
    failed = snapshot.Failure(Swap(PAIRED, TAKES_OVER), "no answer", NOW - MS)
    doubt = _requested(checkpoints=LOADED, failure=failed, pending=TAKES_OVER, last_read_ns=0)
    d = decide(doubt)
    assert d.answer is not None
    assert "whether it was changed is known when the arbiter answers" in d.answer.sentence
    d = decide(replace(doubt, request=None))
    assert (d.step, d.still) == (Read(), False)


@pytest.mark.parametrize("me", ["a", "b"])
def test_what_was_not_written_cannot_be_written_later(me: str) -> None:
    """As found: nobody ever knew, and the pair did not say "protected" again."""
    d = decide(_at(me, PAIRED, pending=TAKES_OVER))
    assert d.step == Swap(PAIRED, record.reassert(PAIRED))
    assert d.sentence.startswith("whether the record was changed is not known: writing down")
    assert d.gap == d.sentence


def test_while_it_is_being_written_nothing_ends_it() -> None:
    s = _silent(_requested(checkpoints=LOADED, pending=TAKES_OVER), link=SILENT, management=SILENT)
    assert decide(s).answer is None


def test_the_primary_takes_up_what_the_secondary_was_asked() -> None:
    requests, peer = Requests("a"), msgspec.structs.replace(PEER_B, switchover="t2")
    requests.hear(peer, TAKES_OVER, NOW)
    assert requests.request is None, "only while the record says that this host is the primary"
    requests.hear(peer, PAIRED, NOW)
    assert requests.request == Request("t2", NOW, B, here=False)
    assert requests.asked_of_peer == ""
    requests.settle(Answer("t2", False, "no switchover: x"))
    requests.hear(peer, PAIRED, NOW)
    assert requests.request is None, "answered once"


def test_only_the_secondary_passes_it_on() -> None:
    for host, passed_on in (("a", ""), ("b", "t1")):
        requests = Requests(host)
        requests.request = REQUEST
        assert requests.asked_of_peer == passed_on


# --- forced failover ------------------------------------------------------------------------

GEN = PAIRED.generation
FORCE = Request("f1", ASKED, B, overrides=GEN)
UNFIT_B = VmFacts(B, VmRole.SECONDARY, alive=True, fit=False)


def _orphan(**change: Any) -> Snapshot:
    """The primary died while the replica on b was unfit."""
    return _silent(_at("b", PAIRED, vm=UNFIT_B, **change))


def test_an_unfit_replica_may_be_forced_and_the_cost_is_told() -> None:
    s = _orphan()
    assert _swap(s) is None
    assert operator.no_force(s, GEN) == ""
    assert operator.cost_of_force(s) == (
        f"Generation {GEN} is {PAIRED.describe()}. Let the VM on b serve alone? Its disk failed: "
        "what clients were told, and what a wrote, may be missing from it for good."
    )
    fit = _silent(_at("b", PAIRED))
    assert "It has all that clients were told" in operator.cost_of_force(fit)


@pytest.mark.parametrize(
    ("s", "generation", "why"),
    [
        (_orphan(), GEN - 1, f"the record is at generation {GEN}, not {GEN - 1}"),
        (_orphan(request=FORCE), GEN, "another planned operation is under way"),
        (_at("b", None, read_error="no answer"), GEN, "the record is not known: no answer; bring"),
        (_silent(_at("b", PAIRED, vm=None)), GEN, "b has no whole VM that the record names"),
        (
            _silent(_at("b", PAIRED, vm=replace(UNFIT_B, settled=Settled.BROKEN))),
            GEN,
            "b has no whole VM that the record names",
        ),
        (_at("b", ACTIVE), ACTIVE.generation, "b has no whole VM that the record names"),
        (_at("a", ACTIVE), ACTIVE.generation, "the VM here is the one that serves"),
        (_at("b", PAIRED, vm=UNFIT_B), GEN, "a is heard and its VM is well"),
        (
            _at("a", TAKES_OVER),
            TAKES_OVER.generation,
            "b is heard and its VM is well",
        ),
    ],
)
def test_force_is_refused(s: Snapshot, generation: int, why: str) -> None:
    assert operator.no_force(s, generation).startswith(why)


def test_it_bids_takes_over_and_is_answered_although_unfit() -> None:
    s = _orphan(request=FORCE)
    assert _swap(s) == TAKES_OVER
    assert "forced by the operator" in decide(s).sentence
    won = _silent(_at("b", TAKES_OVER, vm=UNFIT_B, request=FORCE))
    assert decide(won).step == Yank()
    done = decide(_silent(_at("b", record.activate(TAKES_OVER), vm=UNFIT_B, request=FORCE)))
    assert done.answer == Answer("f1", True, "b serves now")


def test_a_claim_is_taken_back_at_once() -> None:
    request = Request("f1", ASKED, A, overrides=TAKES_OVER.generation)
    s = _silent(_at("a", TAKES_OVER))
    assert _swap(s) is None
    assert operator.no_force(s, TAKES_OVER.generation) == ""
    assert _swap(replace(s, request=request)) == record.claim(TAKES_OVER, A)


def test_one_that_is_stuck_after_its_claim_goes_on() -> None:
    stuck = _silent(_at("b", TAKES_OVER, vm=UNFIT_B))
    assert decide(stuck).state is State.STUCK
    request = replace(FORCE, overrides=TAKES_OVER.generation)
    assert operator.no_force(stuck, TAKES_OVER.generation) == ""
    assert decide(replace(stuck, request=request)).step == Yank()


def test_a_record_that_moved_on_ends_it() -> None:
    s = _orphan(request=replace(FORCE, overrides=GEN - 1))
    assert _swap(s) is None
    d = decide(s)
    assert d.answer is not None
    assert d.answer.sentence.startswith("no failover: the record moved on: paired")


def test_without_the_arbiter_nothing_is_forced_and_it_says_what_to_do() -> None:
    failed = snapshot.Failure(Swap(PAIRED, TAKES_OVER), "no answer", NOW - MS)
    d = decide(_orphan(request=FORCE, failure=failed))
    assert d.answer == Answer(
        "f1",
        False,
        "no failover: the record cannot be changed: no answer; bring the arbiter back; "
        "`colo-ebpf arbiter init` only when every VM of this name has ended",
    )
    assert d.mode is decide(_orphan()).mode


def test_an_svm_inside_a_load_is_not_forced_to_run() -> None:
    vm = replace(UNFIT_B, settled=Settled.OPEN, colo_exit_ns=NOW)
    s = _silent(_at("b", TAKES_OVER, vm=vm, request=FORCE, yanked_ns=NOW - 6_000 * MS))
    d = decide(replace(s, done=frozenset({Yank})))
    assert d.answer is not None
    assert "the SVM hangs inside a load" in d.answer.sentence


# --- paused ---------------------------------------------------------------------------------


def test_a_paused_secondary_does_not_take_over_but_a_primary_goes_on_alone() -> None:
    d = decide(_silent(_at("b", PAIRED, paused=True)))
    assert (d.state, d.step) == (State.SECONDARY, None)
    assert d.sentence == (
        "paused by the operator: not taking over although a is not heard on any path"
    )
    alone = _swap(_silent(_at("a", PAIRED, paused=True)))
    assert alone == record.claim(PAIRED, A), "nothing changes hosts"


def test_a_paused_primary_without_a_vm_does_not_concede() -> None:
    d = decide(_at("a", PAIRED, vm=None, paused=True))
    assert (d.step, d.mode) == (None, Mode.WITHHOLD)
    assert "not conceding to b although the VM here is gone" in d.sentence
    assert _swap(_at("b", PAIRED, vm=None, paused=True)) == record.concede(PAIRED, B)


def test_paused_an_abandoned_claim_goes_back_to_the_old_primary_only() -> None:
    later = {"record_since_ns": NOW - 20_000 * MS, "paused": True}
    gone = 20_000 * MS
    by_b, by_a = record.claim(PAIRED, B), record.claim(PAIRED, A)
    assert _swap(_silent(_at("a", by_b, **later), link=gone, management=gone)) is not None
    assert _swap(_silent(_at("b", by_a, **later), link=gone, management=gone)) is None


def test_what_was_begun_before_the_pause_is_finished() -> None:
    won = _silent(_at("b", TAKES_OVER, paused=True))
    assert decide(won).step == Yank()


def test_paused_it_can_be_forced_and_planned() -> None:
    assert _swap(_orphan(request=FORCE, paused=True)) == TAKES_OVER
    assert _swap(_requested(checkpoints=LOADED, paused=True)) == record.hand_over(PAIRED)


def test_paused_no_pair_is_offered() -> None:
    stands_by = msgspec.structs.replace(
        PEER_B, state="standby", vni=0, generation=ACTIVE.generation
    )
    quiet = _at("a", ACTIVE, mode=Mode.SOLO, peer=PeerFacts(stands_by, HEARD, HEARD))
    assert decide(quiet).task is not None
    d = decide(replace(quiet, paused=True))
    assert (d.task, d.sentence) == (None, "alone, unprotected: paused by the operator")


def test_the_newest_word_counts_and_is_kept(tmp_path: Path) -> None:
    first, second = Pause(1, True), Pause(2, False)
    assert second.newer_than(first)
    assert not first.newer_than(second)
    assert Pause(2, True).newer_than(second), "said at the same time"
    assert PauseFile(tmp_path).load() == Pause()
    PauseFile(tmp_path).keep(first)
    assert PauseFile(tmp_path).load() == first
    (tmp_path / "pause").write_text("{")
    with pytest.raises(ControlError, match="remove it, then say `colo-ebpf pause` again"):
        PauseFile(tmp_path).load()
