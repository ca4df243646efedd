# SPDX-License-Identifier: GPL-2.0-only
"""When the other host is turned off: one snapshot in, one decision out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from colo_ebpf.control.decision import record, snapshot
from colo_ebpf.control.decision.actions import (
    Committed,
    ContinueAlone,
    Fence,
    GoPublic,
    Read,
    State,
    Swap,
    TakeOver,
    Yank,
)
from colo_ebpf.control.decision.decide import decide
from colo_ebpf.control.decision.record import Kind
from colo_ebpf.control.decision.snapshot import (
    CheckpointFacts,
    FenceFacts,
    FenceWhen,
    PeerFacts,
    Snapshot,
    VmFacts,
)
from colo_ebpf.model import Mode, VmHealth, VmRole
from tests.unit.test_decide import (
    COLD,
    HEARD,
    MS,
    NOW,
    PAIRED,
    PEER_A,
    PEER_B,
    A,
    B,
    _at,
    _says,
    _silent,
)

_ACTED = {"a": frozenset({ContinueAlone}), "b": frozenset({Yank, TakeOver})}


def _won(me: str, fence: FenceFacts, **change: Any) -> Snapshot:
    """Host `me` has claimed unasked, and acted: only the fence and `active` are left."""
    r = record.claim(PAIRED, A if me == "a" else B)
    mode = Mode.PRIMARY if me == "a" else Mode.WITHHOLD
    s = _silent(_at(me, r, fence=fence, done=_ACTED[me], mode=mode))
    return replace(s, **change)


@pytest.mark.parametrize("when", [FenceWhen.BEFORE_SOLO, FenceWhen.AFTER_SOLO])
@pytest.mark.parametrize("me", ["a", "b"])
def test_a_host_whose_vm_is_gone_is_given_time_to_concede(me: str, when: FenceWhen) -> None:
    vm = VmFacts(A if me == "a" else B, VmRole.PRIMARY, alive=True, colo_exit_ns=NOW)
    s = replace(_says(me, PAIRED, health=VmHealth.GONE), vm=vm, fence=FenceFacts(when))
    assert decide(s).sentence.endswith("says that its VM is gone: it concedes")
    assert decide(replace(s, fence=FenceFacts())).step is not None, "nobody would be turned off"
    late = replace(vm, colo_exit_ns=NOW - 600 * MS)
    assert decide(replace(s, vm=late)).step is not None


@pytest.mark.parametrize(
    ("change", "waits"),
    [
        ({}, True),
        ({"fence": FenceFacts()}, False),
        ({"now_ns": NOW + 250 * MS}, False),
    ],
)
def test_a_primary_whose_replica_left_hears_first_why(change: dict[str, Any], waits: bool) -> None:
    """Its QEMU may have died: then the other host says so."""
    vm = VmFacts(A, VmRole.PRIMARY, alive=True, colo_exit_ns=NOW)
    s = _at("a", PAIRED, vm=vm, fence=FenceFacts(FenceWhen.BEFORE_SOLO))
    s = replace(s, checkpoints=CheckpointFacts(broken="COLO ended"))
    d = decide(replace(s, **change))
    assert (d.sentence == "COLO ended: b may concede") is waits
    assert (d.step is None) is waits
    unfit = msgspec.structs.replace(PEER_B, fit=False)
    assert decide(replace(s, peer=replace(s.peer, state=unfit))).step is not None


def _failing(when: FenceWhen, failures: int, *, ago: int = 1, **words: Any) -> FenceFacts:
    due = Fence("a", 4, "x") if when is FenceWhen.AFTER_SOLO else None
    return FenceFacts(when, due=due, failures=failures, error="f: exit code 1",
                      failed_ns=NOW - ago * MS, **words)  # fmt: skip


def _activates(s: Snapshot) -> bool:
    step = decide(s).step
    return isinstance(step, Swap) and step.new.kind is Kind.ACTIVE


@pytest.mark.parametrize(("me", "mode"), [("a", Mode.PRIMARY), ("b", Mode.WITHHOLD)])
def test_the_peer_is_off_before_anything_leaves(me: str, mode: Mode) -> None:
    s = _won(me, FenceFacts(FenceWhen.BEFORE_SOLO, reason="silent"))
    d = decide(s)
    assert s.record is not None
    assert (d.state, d.mode) == (State.CLAIMED, mode)
    assert d.step == Fence(s.who.peer, s.record.generation, "silent")
    assert _activates(replace(s, done=s.done | {Fence}))


def test_the_claim_is_acted_on_before_the_fence_so_that_it_can_be_handed_back() -> None:
    for me in "ab":
        s = _won(me, FenceFacts(FenceWhen.BEFORE_SOLO), done=frozenset())
        assert isinstance(decide(s).step, ContinueAlone | Yank)


@pytest.mark.parametrize("when", [FenceWhen.OFF, FenceWhen.AFTER_SOLO])
def test_otherwise_activation_waits_for_no_fence(when: FenceWhen) -> None:
    for me in "ab":
        assert _activates(_won(me, FenceFacts(when)))


def test_who_conceded_is_not_fenced_nor_is_there_anyone_at_a_start() -> None:
    before = FenceFacts(FenceWhen.BEFORE_SOLO)
    conceded = _won("b", before, record=record.concede(PAIRED, A))
    assert _activates(conceded)
    handed_back = record.concede(record.claim(PAIRED, A), A)
    assert _activates(_won("b", before, record=handed_back))
    assert _activates(_at("a", record.start(COLD, A), fence=before))


def test_who_handed_over_is_not_fenced() -> None:
    given = record.hand_over(PAIRED)
    assert _activates(_won("b", FenceFacts(FenceWhen.BEFORE_SOLO), record=given))


def test_a_claim_that_was_taken_back_is_fenced() -> None:
    taken = record.claim(record.claim(PAIRED, A), B)
    d = decide(_won("b", FenceFacts(FenceWhen.BEFORE_SOLO), record=taken))
    assert d.step == Fence("a", taken.generation, "")


@pytest.mark.parametrize(("ago_ms", "again"), [(1, False), (2_499, False), (2_500, True)])
def test_a_fence_that_failed_is_tried_again_after_a_rest(ago_ms: int, again: bool) -> None:
    d = decide(_won("b", _failing(FenceWhen.BEFORE_SOLO, 90, ago=ago_ms)))
    assert isinstance(d.step, Fence) is again
    assert (d.state, d.mode) == (State.CLAIMED, Mode.WITHHOLD)
    assert d.sentence == (
        "output stays withheld: fencing a failed, it is tried again: f: exit code 1; if a is "
        'certainly off, set fence.when = "off" and restart this daemon'
    )


def test_before_it_is_tried_again_the_record_is_read() -> None:
    fence = _failing(FenceWhen.BEFORE_SOLO, 1, ago=2_500)
    s = _won("b", fence, last_read_ns=fence.failed_ns)
    assert decide(s).step == Read()
    unread = replace(s, failure=snapshot.Failure(Read(), "no answer", NOW), read_error="no answer")
    d = decide(unread)
    assert d.step is None
    assert d.sentence.endswith("; the record cannot be read: no answer")
    taken_back = replace(s, record=record.claim(record.claim(PAIRED, B), A), last_read_ns=NOW)
    assert decide(taken_back).state is State.LOST


def test_a_peer_that_cannot_be_fenced_needs_an_operator() -> None:
    d = decide(_won("b", _failing(FenceWhen.BEFORE_SOLO, 1, ago=9_999, hopeless=True)))
    assert (d.state, d.mode, d.step) == (State.STUCK, Mode.WITHHOLD, None)
    assert d.sentence.startswith("output stays withheld: a cannot be fenced: f: exit code 1")


def _alone_b(fence: FenceFacts, **change: Any) -> Snapshot:
    active = record.activate(record.claim(PAIRED, B))
    return replace(_silent(_at("b", active, mode=Mode.SOLO, fence=fence)), **change)


@pytest.mark.parametrize(
    ("failures", "ago_ms", "fences"),
    [(0, 1, True), (1, 1, False), (1, 2_500, True), (4, 2_500, True), (5, 2_500, False)],
)
def test_after_solo_the_vm_serves_while_the_peer_is_fenced(
    failures: int, ago_ms: int, fences: bool
) -> None:
    d = decide(_alone_b(_failing(FenceWhen.AFTER_SOLO, failures, ago=ago_ms)))
    assert (d.state, d.mode) == (State.SOLO, Mode.SOLO)
    assert isinstance(d.step, Fence) is fences


def test_a_fence_that_was_given_up_is_told_and_holds_nothing_up() -> None:
    for fence in (
        _failing(FenceWhen.AFTER_SOLO, 5),
        _failing(FenceWhen.AFTER_SOLO, 1, hopeless=True),
    ):
        assert isinstance(decide(_alone_b(fence)).step, Committed)
        whole = record.commit(record.activate(record.claim(PAIRED, B)))
        d = decide(_alone_b(fence, record=whole))
        assert d.sentence == (
            "alone, unprotected: a is not heard; a could not be fenced: f: exit code 1"
        )


def test_first_the_vm_is_public_then_the_peer_is_fenced() -> None:
    s = _alone_b(_failing(FenceWhen.AFTER_SOLO, 0), public=False)
    assert decide(s).step == GoPublic()


def test_a_loser_that_stands_by_again_is_left_as_it_is() -> None:
    back = msgspec.structs.replace(PEER_A, state="standby", instance="", health=VmHealth.NONE)
    s = _alone_b(_failing(FenceWhen.AFTER_SOLO, 1, ago=9_999), peer=PeerFacts(back, HEARD, HEARD))
    assert isinstance(decide(s).step, Committed)
