# SPDX-License-Identifier: GPL-2.0-only
"""What a daemon does, fact by fact: one snapshot in, one decision with its sentence out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from colo_ebpf.control import facts, record
from colo_ebpf.control.decide import decide
from colo_ebpf.control.epoch import Loaded, Reason
from colo_ebpf.control.facts import (
    ContinueAlone,
    EndVm,
    EnterColo,
    Fence,
    FenceFacts,
    FenceWhen,
    GoPublic,
    PeerFacts,
    Snapshot,
    StartVm,
    State,
    Swap,
    Synchronise,
    TakeOver,
    Task,
    TaskKind,
    TurnFacts,
    Turns,
    VmFacts,
    Who,
    Yank,
)
from colo_ebpf.control.peer import PeerState
from colo_ebpf.control.record import Kind, Record
from colo_ebpf.model import Endpoints, Mode, Pairing, Settled, VmHealth, VmRole

MS = 1_000_000
A, B = "a/0000000000000001", "b/0000000000000002"
COLD = record.cold("a")
ACTIVE = record.activate(record.start(COLD, A))
PAIRED = record.pair(ACTIVE, B, 7)
NOW = 10_000_000 * MS
HEARD, SILENT = 5 * MS, 700 * MS
PEER_A = PeerState(vm="v", host="a", boot="x", state="primary", instance=A, vni=7,
                   generation=PAIRED.generation, health=VmHealth.RUNNING)  # fmt: skip
PEER_B = PeerState(vm="v", host="b", boot="y", state="secondary", instance=B, vni=7,
                   generation=PAIRED.generation, health=VmHealth.RUNNING)  # fmt: skip


def _at(me: str, r: Record | None, **change: Any) -> Snapshot:
    """A quiet moment on host `me`: its VM of the record runs, the peer is heard on both paths."""
    peer = PEER_B if me == "a" else PEER_A
    if r is not None:
        peer = msgspec.structs.replace(peer, generation=r.generation)
    role = VmRole.PRIMARY if me == "a" else VmRole.SECONDARY
    base = Snapshot(
        now_ns=NOW,
        who=Who("v", me, "b" if me == "a" else "a", "192.0.2.9", starts=me == "a"),
        timing=facts.Timing(peer_timeout_ns=250 * MS, qmp_timeout_ns=5_000 * MS),
        record=r,
        record_since_ns=NOW - 1_000 * MS,
        confirmed=True,
        pending=None,
        read_error="",
        vm=VmFacts(A if me == "a" else B, role, alive=True),
        peer=PeerFacts(peer, HEARD, HEARD),
        turns=TurnFacts(),
        mode=Mode.PRIMARY if me == "a" else Mode.SECONDARY,
        mode_since_ns=NOW - 1_000 * MS,
        plane_hears=True,
        public=True,
        task=None,
        done=frozenset(),
        failure=None,
        yanked_ns=None,
        offsets=0,
        rest_until_ns=0,
        last_read_ns=NOW,
        fresh_vni=9,
        fresh_instance=f"{me}/00000000000000ff",
    )
    return replace(base, **change)


def _silent(s: Snapshot, *, link: int = SILENT, management: int = SILENT) -> Snapshot:
    return replace(s, peer=replace(s.peer, link_age_ns=link, management_age_ns=management))


def _claims(s: Snapshot, instance: str) -> bool:
    step = decide(s).step
    return isinstance(step, Swap) and step.new.kind is Kind.CLAIMED and step.new.owner == instance


# --- paired -------------------------------------------------------------------------------


def test_a_healthy_pair_does_nothing() -> None:
    p, s = decide(_at("a", PAIRED)), decide(_at("b", PAIRED))
    assert (p.state, p.mode, p.turns, p.step) == (State.PRIMARY, Mode.PRIMARY, Turns.PRIMARY, None)
    assert (s.state, s.mode, s.turns, s.step) == (
        State.SECONDARY, Mode.SECONDARY, Turns.SECONDARY, None)  # fmt: skip


@pytest.mark.parametrize(("me", "mine"), [("a", A), ("b", B)])
def test_each_side_bids_when_the_other_is_silent_on_all_paths(me: str, mine: str) -> None:
    s = _silent(_at(me, PAIRED))
    assert _claims(s, mine)
    assert "not heard on any path" in decide(s).sentence
    assert decide(s).mode is _at(me, PAIRED).mode, "still withheld until the record says so"


def test_when_only_the_link_is_cut_the_primary_goes_first() -> None:
    assert _claims(_silent(_at("a", PAIRED), management=HEARD), A)
    assert decide(_silent(_at("b", PAIRED), management=HEARD)).step is None
    assert _claims(_silent(_at("b", PAIRED), link=900 * MS, management=HEARD), B)


def test_a_cut_management_path_is_no_reason() -> None:
    assert decide(_silent(_at("a", PAIRED), link=HEARD)).step is None
    assert decide(_silent(_at("b", PAIRED), link=HEARD)).step is None


@pytest.mark.parametrize("health", [VmHealth.NONE, VmHealth.GONE, VmHealth.BROKEN])
def test_a_peer_that_says_its_vm_is_gone_is_not_waited_for(health: VmHealth) -> None:
    said = msgspec.structs.replace(PEER_A, health=health)
    assert _claims(_at("b", PAIRED, peer=PeerFacts(said, HEARD, HEARD)), B)


def test_a_daemon_that_restarts_on_a_living_host_is_waited_for() -> None:
    away = PeerFacts(PEER_B, SILENT, SILENT, away_since_ns=NOW - 600 * MS)
    d = decide(_at("a", PAIRED, peer=away))
    assert (d.step, d.mode, d.ask) == (None, Mode.PRIMARY, Reason.PROBE)
    long_gone = PeerFacts(PEER_B, 11_000 * MS, 11_000 * MS, away_since_ns=NOW - 11_000 * MS)
    assert _claims(_at("a", PAIRED, peer=long_gone), A)


def test_a_broken_turn_ends_the_pair() -> None:
    s = _at("a", PAIRED, turns=TurnFacts(broken="a write to the secondary's disk failed"))
    assert _claims(s, A)


def test_without_a_whole_vm_it_concedes() -> None:
    for vm in (None, VmFacts(B, VmRole.SECONDARY, alive=True, settled=Settled.BROKEN)):
        d = decide(_at("b", PAIRED, vm=vm))
        assert isinstance(d.step, Swap)
        assert (d.step.new.owner, d.step.new.other) == (A, "")
        assert d.mode is Mode.WITHHOLD


def test_a_primary_whose_vm_is_gone_passes_clients_on_until_the_other_one_is_active() -> None:
    gone = VmFacts(A, VmRole.PRIMARY, alive=False)
    claimed, conceded = record.claim(PAIRED, B), record.concede(PAIRED, A)
    mode = Mode.PRIMARY
    for r in (PAIRED, claimed, conceded):
        d = decide(_at("a", r, vm=gone, mode=mode))
        assert d.mode is not None
        assert (d.mode, d.pairing) == (Mode.PAIRING, Pairing(7, "192.0.2.9")), r.describe()
        mode = d.mode
    offers_nothing = PeerFacts(msgspec.structs.replace(PEER_B, vni=0), HEARD, HEARD)
    active = record.activate(conceded)
    d = decide(_at("a", active, vm=gone, mode=mode, peer=offers_nothing))
    assert (d.mode, d.pairing) == (Mode.WITHHOLD, None)


def test_nobody_passes_on_what_is_not_his() -> None:
    """A VM that lives, a secondary, an operator's pause: nothing goes over the link."""
    claimed = record.claim(PAIRED, B)
    assert decide(_at("a", claimed)).pairing is None
    gone_b = VmFacts(B, VmRole.SECONDARY, alive=False)
    assert decide(_at("b", PAIRED, vm=gone_b)).pairing is None
    gone_a = VmFacts(A, VmRole.PRIMARY, alive=False)
    assert decide(_at("a", PAIRED, vm=gone_a, paused=True)).mode is Mode.WITHHOLD
    assert decide(_at("a", claimed, vm=gone_a, mode=Mode.WITHHOLD)).pairing is None


def test_the_winner_takes_what_the_loser_passes_on_only_if_its_vm_is_gone() -> None:
    vm = VmFacts(B, VmRole.SECONDARY, alive=True, colo_exit_ns=NOW)
    gone = msgspec.structs.replace(PEER_A, health=VmHealth.GONE)
    for r, peer in ((record.claim(PAIRED, B), gone), (record.concede(PAIRED, A), PEER_A)):
        for done in (frozenset[type](), frozenset({TakeOver})):
            d = decide(_at("b", r, vm=vm, peer=PeerFacts(peer, HEARD, HEARD), done=done))
            assert (d.mode, d.pairing) == (Mode.WITHHOLD, Pairing(7, "192.0.2.9"))
    d = decide(_silent(_at("b", record.claim(PAIRED, B), vm=vm)))
    assert (d.mode, d.pairing) == (Mode.WITHHOLD, None)


def test_an_unfit_vm_does_not_bid() -> None:
    vm = VmFacts(B, VmRole.SECONDARY, alive=True, fit=False)
    d = decide(_silent(_at("b", PAIRED, vm=vm)))
    assert d.step is None
    assert "not bidding" in d.sentence


def _says(me: str, r: Record, **words: Any) -> Snapshot:
    """The peer is heard, and says this of itself."""
    s = _at(me, r)
    state = msgspec.structs.replace(s.peer.state, **words)
    return replace(s, peer=replace(s.peer, state=state))


def test_a_replica_that_a_checkpoint_makes_whole_is_kept() -> None:
    d = decide(_says("a", PAIRED, fit=False, want="its disk failed"))
    assert (d.state, d.mode, d.step) == (State.PRIMARY, Mode.PRIMARY, None)
    assert d.sentence == "b is unfit until its next checkpoint: its disk failed"


def test_a_replica_that_is_unfit_for_good_is_left() -> None:
    d = decide(_says("a", PAIRED, fit=False))
    assert isinstance(d.step, Swap)
    assert "b says that its VM is unfit" in d.sentence


@pytest.mark.parametrize(("words", "handed"), [({}, True), ({"fit": False, "want": "x"}, False)])
def test_a_claim_is_handed_back_only_to_one_that_is_fit(
    words: dict[str, Any], handed: bool
) -> None:
    s = _says("a", record.claim(PAIRED, A), **words)
    s = replace(s, failure=facts.Failure(ContinueAlone(), "no answer", NOW - 1))
    assert isinstance(decide(s).step, Swap) is handed


def test_an_unreachable_arbiter_keeps_everything_withheld() -> None:
    s = _silent(_at("b", PAIRED))
    bid = decide(s).step
    assert bid is not None
    failed = replace(s, failure=facts.Failure(bid, "no answer", NOW - 1))
    d = decide(failed)
    assert (d.mode, d.step) == (Mode.SECONDARY, None)
    assert "output stays withheld: no answer" in d.sentence


# --- won and lost ---------------------------------------------------------------------------


def test_the_secondarys_takeover_step_by_step() -> None:
    won = record.claim(PAIRED, B)
    s = _silent(_at("b", won))
    assert decide(s).step == Yank()
    s = replace(s, done=frozenset({Yank}), yanked_ns=NOW)
    assert decide(s).step is None, "a load could still come"
    vm = VmFacts(B, VmRole.SECONDARY, alive=True, colo_exit_ns=NOW)
    s = replace(s, vm=vm)
    assert decide(s).step == TakeOver()
    s = replace(s, done=frozenset({Yank, TakeOver}), mode=Mode.WITHHOLD)
    d = decide(s)
    assert isinstance(d.step, Swap)
    assert d.step.new.kind is Kind.ACTIVE
    assert d.mode is Mode.WITHHOLD, "nothing leaves before active is confirmed"
    d = decide(_silent(_at("b", record.activate(won), public=False, mode=Mode.WITHHOLD)))
    assert (d.mode, d.step) == (Mode.SOLO, GoPublic())


def test_an_active_that_was_only_read_is_proven_first() -> None:
    active = record.activate(record.claim(PAIRED, B))
    d = decide(_at("b", active, confirmed=False, mode=Mode.WITHHOLD))
    assert (d.state, d.mode) == (State.SOLO, None)
    assert isinstance(d.step, Swap)
    assert d.step.new.kind is Kind.ACTIVE


def test_a_secondary_inside_a_load_never_takes_over() -> None:
    won = record.claim(PAIRED, B)
    vm = VmFacts(B, VmRole.SECONDARY, alive=True, settled=Settled.OPEN, colo_exit_ns=NOW)
    late = replace(_at("b", won, vm=vm), done=frozenset({Yank}), yanked_ns=NOW - 6_000 * MS)
    d = decide(late)
    assert isinstance(d.step, Swap)
    assert d.step.new.owner == A
    assert "hands" in d.sentence or "handing back" in d.sentence


def test_the_primary_leaves_the_pair_before_it_activates() -> None:
    won = record.claim(PAIRED, A)
    s = _silent(_at("a", won))
    assert (decide(s).step, decide(s).mode) == (ContinueAlone(), Mode.PRIMARY)
    d = decide(replace(s, done=frozenset({ContinueAlone})))
    assert isinstance(d.step, Swap)
    assert d.step.new.kind is Kind.ACTIVE


def test_the_loser_keeps_its_vm_until_the_winner_is_active() -> None:
    lost = decide(_at("a", record.claim(PAIRED, B)))
    assert lost.state is State.LOST
    assert not isinstance(lost.step, EndVm)
    ended = decide(_at("a", record.activate(record.claim(PAIRED, B))))
    assert (ended.state, ended.mode, ended.step) == (State.ENDING, Mode.WITHHOLD, EndVm(A))


def test_an_old_vm_that_comes_back_is_ended() -> None:
    later = record.commit(record.activate(record.claim(PAIRED, B)))
    again = record.pair(later, "a/0000000000000003", 11)
    d = decide(_at("a", again))
    assert d.step == EndVm(A)


# --- fencing ----------------------------------------------------------------------------------

_ACTED = {"a": frozenset({ContinueAlone}), "b": frozenset({Yank, TakeOver})}


def _won(me: str, fence: FenceFacts, **change: Any) -> Snapshot:
    """Host `me` has claimed unasked, and acted: only the fence and `active` are left."""
    r = record.claim(PAIRED, A if me == "a" else B)
    mode = Mode.PRIMARY if me == "a" else Mode.WITHHOLD
    s = _silent(_at(me, r, fence=fence, done=_ACTED[me], mode=mode))
    return replace(s, **change)


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
    assert decide(s).step == facts.Read()
    unread = replace(
        s, failure=facts.Failure(facts.Read(), "no answer", NOW), read_error="no answer"
    )
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
        assert isinstance(decide(_alone_b(fence)).step, facts.Committed)
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
    assert isinstance(decide(s).step, facts.Committed)


# --- cold start and pairing -------------------------------------------------------------------


def test_a_first_record_on_the_wrong_host_starts_nothing() -> None:
    """Its image may be empty. A record that came back to an image names the one that is whole."""
    first, back = record.cold("b"), record.cold("b", generation=9)
    assert decide(_at("b", first, vm=None, mode=Mode.WITHHOLD)).state is State.STUCK
    assert decide(_at("b", back, vm=None, mode=Mode.WITHHOLD)).state is State.STARTING


def test_only_the_host_that_the_record_names_starts_the_vm() -> None:
    d = decide(_at("a", COLD, vm=None, mode=Mode.WITHHOLD))
    assert isinstance(d.step, Swap)
    assert d.step.new.owner == "a/00000000000000ff"
    assert decide(_at("b", COLD, vm=None, mode=Mode.WITHHOLD)).state is State.STANDBY
    started = record.start(COLD, A)
    d = decide(_at("a", started, vm=None, mode=Mode.WITHHOLD))
    assert d.step == StartVm(VmRole.PRIMARY, A)


def test_a_vm_that_died_with_part_of_its_disk_in_memory_is_not_started_again() -> None:
    overlaid = record.activate(record.claim(PAIRED, B))
    d = decide(_at("b", overlaid, vm=None, mode=Mode.WITHHOLD))
    assert (d.state, d.step) == (State.STUCK, None)


def _pairing(**change: Any) -> Snapshot:
    to = Endpoints("192.0.2.9", 1, 2)
    peer = msgspec.structs.replace(PEER_B, state="joining", vni=9, endpoints=to, generation=3,
                         health=VmHealth.INCOMING)  # fmt: skip
    task = Task(TaskKind.PAIR, 9, B)
    facts_of_peer = PeerFacts(peer, HEARD, HEARD)
    return _at("a", ACTIVE, mode=Mode.SOLO, task=task, peer=facts_of_peer, **change)


def test_the_way_into_a_pair() -> None:
    d = decide(_pairing())
    assert isinstance(d.step, Synchronise)
    s = _pairing(done=frozenset({Synchronise}))
    assert isinstance(decide(s).step, EnterColo)
    s = replace(s, done=frozenset({Synchronise, EnterColo}))
    d = decide(s)
    assert (d.mode, d.ask, d.turns) == (Mode.SOLO, Reason.WARM_UP, Turns.PRIMARY)
    early = Loaded(6, NOW - 500 * MS, NOW - 400 * MS, MS, MS, armed=True, cause=Reason.WARM_UP)
    s = replace(s, turns=TurnFacts(loaded=early))
    d = decide(s)
    assert (d.mode, d.ask, d.step) == (Mode.PAIRING, Reason.PAIRING, None)
    s = replace(s, mode=Mode.PAIRING, mode_since_ns=NOW - 450 * MS)
    assert decide(s).step is None, "that checkpoint was triggered before output was withheld"
    later = replace(early, triggered_ns=NOW - 440 * MS)
    d = decide(replace(s, turns=TurnFacts(loaded=later)))
    assert isinstance(d.step, Swap)
    assert (d.step.new.kind, d.step.new.other, d.step.new.vni) == (Kind.PAIRED, B, 9)
    assert d.mode is Mode.PAIRING, "withheld until the swap's outcome is known"


def test_no_pair_before_the_secondary_has_every_lasting_offset() -> None:
    done = frozenset({Synchronise, EnterColo})
    warm = Loaded(6, NOW - 20 * MS, NOW, MS, MS, armed=True, cause=Reason.WARM_UP)
    s = _pairing(done=done, turns=TurnFacts(loaded=warm), offsets=3)
    d = decide(s)
    assert (d.mode, d.step) == (Mode.SOLO, None)
    assert d.sentence == "handing over sequence offsets: 0 of 3"
    assert s.peer.state is not None
    has = msgspec.structs.replace(s.peer.state, offsets_have=3)
    d = decide(replace(s, peer=replace(s.peer, state=has)))
    assert d.mode is Mode.PAIRING


def test_while_the_pairs_swap_is_in_doubt_nothing_leaves_whatever_else_fails() -> None:
    """Found by simulation: the link was cut, and the peer, a secondary by record, went on alone."""
    sent = record.pair(ACTIVE, B, 9)
    done = frozenset({Synchronise, EnterColo})
    doubt = _pairing(done=done, pending=sent, plane_hears=False, mode_since_ns=NOW)
    for s in (doubt, _silent(doubt), replace(doubt, task=None), replace(doubt, done=frozenset())):
        d = decide(s)
        assert (d.mode, d.cancels) == (Mode.PAIRING, False)
        assert isinstance(d.step, Swap)
        assert d.step.new.kind is Kind.ACTIVE, "if this one wins, the other never can"


def test_an_unarmed_checkpoint_is_not_enough() -> None:
    loaded = Loaded(6, NOW - 10 * MS, NOW, MS, MS, armed=False, cause=Reason.PAIRING)
    s = _pairing(done=frozenset({Synchronise, EnterColo}), turns=TurnFacts(loaded=loaded))
    s = replace(s, mode=Mode.PAIRING, mode_since_ns=NOW - 20 * MS)
    assert decide(s).step is None


def test_no_full_sized_frame_no_pair() -> None:
    d = decide(_pairing(done=frozenset({Synchronise}), plane_hears=False))
    assert d.step is None
    assert "is its MTU large enough?" in d.sentence


def test_a_pairing_that_fails_returns_to_passing() -> None:
    failed = facts.Failure(Synchronise(Endpoints("x", 1, 2)), "images differ in size", NOW)
    d = decide(_pairing(failure=failed))
    assert (d.state, d.mode, d.cancels) == (State.SOLO, Mode.SOLO, True)
    assert d.sentence == "gave up pairing: images differ in size"


def test_a_joining_secondary_never_bids() -> None:
    task = Task(TaskKind.JOIN, 9, B)
    d = decide(_silent(_at("b", ACTIVE, task=task)))
    assert d.state is State.JOINING
    assert not isinstance(d.step, Swap)


def test_an_unread_record_changes_nothing_in_the_kernel() -> None:
    d = decide(_at("a", None, read_error="no answer"))
    assert (d.state, d.mode) == (State.UNKNOWN, None)
    assert "no answer" in d.sentence


def test_a_vm_that_cannot_be_ended_is_told_and_tried_again() -> None:
    r = record.activate(record.claim(PAIRED, B))
    failure = facts.Failure(EndVm(A), "pid 7 is killed and not gone", NOW - MS)
    d = decide(_at("a", r, failure=failure))
    assert (d.state, d.step) == (State.ENDING, None)
    assert d.sentence == f"ending the VM {A}: pid 7 is killed and not gone"
    later = decide(_at("a", r, failure=replace(failure, at_ns=NOW - 1_000 * MS)))
    assert later.step == EndVm(A)
