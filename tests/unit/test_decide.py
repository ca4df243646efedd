# SPDX-License-Identifier: GPL-2.0-only
"""What a daemon does, fact by fact: one snapshot in, one decision with its sentence out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from colo_ebpf.control.checkpoint.primary import Cause
from colo_ebpf.control.decision import record, snapshot
from colo_ebpf.control.decision.actions import (
    ContinueAlone,
    EndVm,
    GoPublic,
    Read,
    Side,
    State,
    Swap,
    TakeOver,
    Yank,
)
from colo_ebpf.control.decision.decide import decide
from colo_ebpf.control.decision.record import Kind, Record
from colo_ebpf.control.decision.snapshot import (
    CheckpointFacts,
    PeerFacts,
    Snapshot,
    VmFacts,
    Who,
)
from colo_ebpf.control.peer.state import PeerState
from colo_ebpf.model import Mode, Pairing, Settled, VmHealth, VmRole
from tests.deadlines import DEADLINES

MS = 1_000_000
A, B = "a/0000000000000001", "b/0000000000000002"
COLD = record.cold("a")
ACTIVE = record.activate(record.start(COLD, A))
PAIRED = record.pair(ACTIVE, B, 7)
NOW = 10_000_000 * MS
HEARD, SILENT = 5 * MS, 700 * MS
PEER_A = PeerState(vm="v", host="a", boot="x", state="primary", instance=A, vni=7,
                   generation=PAIRED.generation, health=VmHealth.RUNNING, hears=True)  # fmt: skip
PEER_B = PeerState(vm="v", host="b", boot="y", state="secondary", instance=B, vni=7,
                   generation=PAIRED.generation, health=VmHealth.RUNNING, hears=True)  # fmt: skip


def _at(me: str, r: Record | None, **change: Any) -> Snapshot:
    """A quiet moment on host `me`: its VM of the record runs, the peer is heard on both paths."""
    peer = PEER_B if me == "a" else PEER_A
    if r is not None:
        peer = msgspec.structs.replace(peer, generation=r.generation)
    role = VmRole.PRIMARY if me == "a" else VmRole.SECONDARY
    base = Snapshot(
        now_ns=NOW,
        who=Who("v", me, "b" if me == "a" else "a", "192.0.2.9", starts=me == "a"),
        timing=replace(DEADLINES, peer_timeout_ns=250 * MS, daemon_grace_ns=10_000 * MS),
        record=r,
        record_since_ns=NOW - 1_000 * MS,
        confirmed=True,
        pending=None,
        read_error="",
        arbiter_error="",
        vm=VmFacts(A if me == "a" else B, role, alive=True),
        peer=PeerFacts(peer, HEARD, HEARD),
        checkpoints=CheckpointFacts(),
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
        rest_why="",
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
    assert (p.state, p.mode, p.side, p.step) == (State.PRIMARY, Mode.PRIMARY, Side.PRIMARY, None)
    assert (s.state, s.mode, s.side, s.step) == (
        State.SECONDARY, Mode.SECONDARY, Side.SECONDARY, None)  # fmt: skip


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


@pytest.mark.parametrize("way", ["bare_ns", "unheard_ns"])
def test_a_link_without_frames_is_cut_whichever_way_they_are_missing(way: str) -> None:
    def silent(me: str, ns: int, **change: Any) -> Snapshot:
        s = _at(me, PAIRED, **change)
        return replace(s, peer=replace(s.peer, **{way: ns}))

    says = "the link carries heartbeats but no frames (firewall?)"
    assert decide(silent("a", 240 * MS)).step is None
    assert _claims(silent("a", SILENT), A)
    assert says in decide(silent("a", SILENT)).sentence
    d = decide(silent("b", SILENT))
    assert (d.step, d.sentence.startswith(says)) == (None, True), "the primary goes first"
    assert _claims(silent("b", 900 * MS), B)
    away = decide(silent("a", SILENT)).sentence, decide(silent("b", 900 * MS)).sentence
    one, other = ("b", "a") if way == "bare_ns" else ("a", "b")
    assert f"none of {one} arrives on {other}" in away[0]
    assert f"none of {other} arrives on {one}" in away[1]


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
    assert (d.step, d.mode, d.ask) == (None, Mode.PRIMARY, Cause.PROBE)
    long_gone = PeerFacts(PEER_B, 11_000 * MS, 11_000 * MS, away_since_ns=NOW - 11_000 * MS)
    assert _claims(_at("a", PAIRED, peer=long_gone), A)


def test_a_broken_turn_ends_the_pair() -> None:
    s = _at(
        "a", PAIRED, checkpoints=CheckpointFacts(broken="a write to the secondary's disk failed")
    )
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


def test_a_vm_that_ends_does_not_bid_and_is_handed_to_nobody() -> None:
    """Its monitor is closed. Once its process is gone this host concedes."""
    vm = VmFacts(A, VmRole.PRIMARY, alive=True, fit=False, closing=True)
    d = decide(_silent(_at("a", PAIRED, vm=vm)))
    assert (d.step, "but the VM here ends: not bidding" in d.sentence) == (None, True)
    d = decide(_at("a", record.claim(PAIRED, A), vm=vm))
    assert (d.state, d.mode, d.step) == (State.CLAIMED, Mode.WITHHOLD, None)
    assert d.sentence == "the VM here ends: output withheld"


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
    s = replace(s, failure=snapshot.Failure(ContinueAlone(), "no answer", NOW - 1))
    assert isinstance(decide(s).step, Swap) is handed


def test_an_unreachable_arbiter_keeps_everything_withheld() -> None:
    s = _silent(_at("b", PAIRED))
    bid = decide(s).step
    assert bid is not None
    failed = replace(s, failure=snapshot.Failure(bid, "no answer", NOW - 1))
    d = decide(failed)
    assert (d.mode, d.step) == (Mode.SECONDARY, None)
    assert "output stays withheld: no answer" in d.sentence


def test_bids_and_looks_do_not_take_turns_while_the_arbiter_cannot_be_reached() -> None:
    s = replace(_silent(_at("b", PAIRED)), read_error="no route", arbiter_error="")
    bid = decide(s).step
    assert isinstance(bid, Swap)
    looks = decide(replace(s, failure=snapshot.Failure(bid, "no route", NOW - 1)))
    assert looks.step == Read()
    rests = replace(s, failure=snapshot.Failure(Read(), "no route", NOW - 1))
    assert decide(rests).step is None
    assert isinstance(decide(replace(rests, now_ns=NOW + rests.timing.retry_ns)).step, Swap)


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


def test_an_unread_record_changes_nothing_in_the_kernel() -> None:
    d = decide(_at("a", None, read_error="no answer"))
    assert (d.state, d.mode) == (State.UNKNOWN, None)
    assert "no answer" in d.sentence


def test_a_vm_that_cannot_be_ended_is_told_and_tried_again() -> None:
    r = record.activate(record.claim(PAIRED, B))
    failure = snapshot.Failure(EndVm(A), "pid 7 is killed and not gone", NOW - MS)
    d = decide(_at("a", r, failure=failure))
    assert (d.state, d.step) == (State.ENDING, None)
    assert d.sentence == f"ending the VM {A}: pid 7 is killed and not gone"
    later = decide(_at("a", r, failure=replace(failure, at_ns=NOW - 1_000 * MS)))
    assert later.step == EndVm(A)


@pytest.mark.parametrize("me", ["a", "b"])
def test_a_pair_that_healed_before_its_arbiter_reads_the_record_again(me: str) -> None:
    """As found: both had bidden while link and arbiter were cut. The link came back first, and the
    pair was called unprotected for ever: the arbiter does not answer."""
    unread = {"read_error": "etcd did not answer"}
    assert isinstance(decide(_at(me, PAIRED, **unread)).step, Read)
    assert decide(_at(me, PAIRED, **unread, arbiter_error="no answer")).step is None
    assert decide(_at(me, PAIRED)).step is None
