# SPDX-License-Identifier: GPL-2.0-only
"""A first start, and the way into a pair: one snapshot in, one decision out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from colo_ebpf.control.checkpoint.primary import Cause, Loaded
from colo_ebpf.control.decision import record, snapshot
from colo_ebpf.control.decision.actions import (
    EnterColo,
    Side,
    StartVm,
    State,
    Swap,
    Synchronise,
    Task,
    TaskKind,
)
from colo_ebpf.control.decision.decide import decide
from colo_ebpf.control.decision.record import Kind
from colo_ebpf.control.decision.snapshot import (
    CheckpointFacts,
    PeerFacts,
    Snapshot,
)
from colo_ebpf.model import Endpoints, Mode, VmHealth, VmRole
from tests.unit.test_decide import (
    ACTIVE,
    COLD,
    HEARD,
    MS,
    NOW,
    PAIRED,
    PEER_B,
    A,
    B,
    _at,
    _silent,
)


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
    assert (d.mode, d.ask, d.side) == (Mode.SOLO, Cause.WARM_UP, Side.PRIMARY)
    early = Loaded(6, NOW - 500 * MS, NOW - 400 * MS, MS, MS, armed=True, cause=Cause.WARM_UP)
    s = replace(s, checkpoints=CheckpointFacts(loaded=early))
    d = decide(s)
    assert (d.mode, d.ask, d.step) == (Mode.PAIRING, Cause.PAIRING, None)
    s = replace(s, mode=Mode.PAIRING, mode_since_ns=NOW - 450 * MS)
    assert decide(s).step is None, "that checkpoint was triggered before output was withheld"
    later = replace(early, triggered_ns=NOW - 440 * MS)
    d = decide(replace(s, checkpoints=CheckpointFacts(loaded=later)))
    assert isinstance(d.step, Swap)
    assert (d.step.new.kind, d.step.new.other, d.step.new.vni) == (Kind.PAIRED, B, 9)
    assert d.mode is Mode.PAIRING, "withheld until the swap's outcome is known"


def test_no_pair_before_the_secondary_has_every_lasting_offset() -> None:
    done = frozenset({Synchronise, EnterColo})
    warm = Loaded(6, NOW - 20 * MS, NOW, MS, MS, armed=True, cause=Cause.WARM_UP)
    s = _pairing(done=done, checkpoints=CheckpointFacts(loaded=warm), offsets=3)
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
    loaded = Loaded(6, NOW - 10 * MS, NOW, MS, MS, armed=False, cause=Cause.PAIRING)
    s = _pairing(
        done=frozenset({Synchronise, EnterColo}), checkpoints=CheckpointFacts(loaded=loaded)
    )
    s = replace(s, mode=Mode.PAIRING, mode_since_ns=NOW - 20 * MS)
    assert decide(s).step is None


@pytest.mark.parametrize("done", [frozenset(), frozenset({Synchronise})])
def test_no_full_sized_frame_no_pair(done: frozenset[type]) -> None:
    d = decide(_pairing(done=done, plane_hears=False))
    assert d.step is None
    assert "no full-sized frame of b arrives on a over the link" in d.sentence
    s = _pairing(done=done)
    assert s.peer.state is not None
    deaf = msgspec.structs.replace(s.peer.state, hears=False)
    d = decide(replace(s, peer=replace(s.peer, state=deaf)))
    assert d.step is None
    assert "no full-sized frame of a arrives on b over the link" in d.sentence


def test_a_pairing_that_fails_returns_to_passing() -> None:
    failed = snapshot.Failure(Synchronise(Endpoints("x", 1, 2)), "images differ in size", NOW)
    d = decide(_pairing(failure=failed))
    assert (d.state, d.mode, d.cancels) == (State.SOLO, Mode.SOLO, True)
    assert d.sentence == "gave up pairing: images differ in size"


def test_a_joining_secondary_never_bids() -> None:
    task = Task(TaskKind.JOIN, 9, B)
    d = decide(_silent(_at("b", ACTIVE, task=task)))
    assert d.state is State.JOINING
    assert not isinstance(d.step, Swap)
