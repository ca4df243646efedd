# SPDX-License-Identifier: GPL-2.0-only
"""A disk that is one and the same on both hosts: who may write to it, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from colo_ebpf.control.checkpoint.primary import (
    Announce,
    Cause,
    Command,
    Do,
    Limits,
    PrimaryCheckpoints,
)
from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.actions import (
    ContinueAlone,
    EndVm,
    Fence,
    GoPublic,
    Reserve,
    StartVm,
    State,
    Step,
    Swap,
    TakeOver,
    Yank,
)
from colo_ebpf.control.decision.decide import decide
from colo_ebpf.control.decision.record import Kind, Record
from colo_ebpf.control.decision.snapshot import Failure, FenceFacts, FenceWhen, Snapshot, VmFacts
from colo_ebpf.control.interfaces import Past
from colo_ebpf.control.qemu.event_log import follow
from colo_ebpf.model import Mode, Phase, Turn, VmEvent, VmEventKind, VmHealth, VmRole
from tests.unit.test_decide import MS, NOW, PAIRED, SILENT, A, B, _at, _says, _silent
from tests.unit.test_operator import LOADED, REQUEST

BEFORE = FenceFacts(FenceWhen.BEFORE_SOLO, reason="silent")
CLAIMED_A, CLAIMED_B = record.claim(PAIRED, A), record.claim(PAIRED, B)


def _shares(s: Snapshot) -> Snapshot:
    return replace(s, who=replace(s.who, shares_disk=True))


def _won(me: str, r: Record, **change: Any) -> Snapshot:
    """On host `me`, which has claimed; its VM is still in the pair."""
    vm = VmFacts(A, VmRole.PRIMARY, alive=True, clean=False)
    if me == "b":
        vm = VmFacts(B, VmRole.SECONDARY, alive=True, clean=False, colo_exit_ns=NOW)
    mode = Mode.PRIMARY if me == "a" else Mode.WITHHOLD
    values = {"vm": vm, "mode": mode, "fence": BEFORE, "public": False} | change
    return _shares(_silent(_at(me, r, **values)))


def _reserves(s: Snapshot) -> Snapshot:
    return replace(s, who=replace(s.who, reserves=True), fence=FenceFacts())


# --- decisions ------------------------------------------------------------------------------


def test_the_old_primary_is_off_and_the_winner_active_before_it_writes() -> None:
    s = _won("b", CLAIMED_B)
    assert decide(s).step == Fence("a", CLAIMED_B.generation, "silent")
    assert decide(replace(s, done=frozenset({Fence}))).step == Swap(
        CLAIMED_B, record.activate(CLAIMED_B)
    )
    _acts_before_anything_leaves(s, TakeOver(), Mode.WITHHOLD)


def test_a_secondary_that_lost_is_not_turned_off() -> None:
    """It only reads the disk, and other VMs may run on its host."""
    s = _won("a", CLAIMED_A)
    assert decide(s).step == Swap(CLAIMED_A, record.activate(CLAIMED_A))
    _acts_before_anything_leaves(s, ContinueAlone(), Mode.PRIMARY)


@pytest.mark.parametrize(("me", "claim"), [("a", CLAIMED_A), ("b", CLAIMED_B)])
def test_whoever_goes_on_alone_reserves_the_disk_before_it_is_active(
    me: str, claim: Record
) -> None:
    s = _reserves(_won(me, claim))
    d = decide(s)
    assert (d.sentence, d.step) == ("reserving the disk for this host", Reserve())
    done = replace(s, done=frozenset({Reserve}))
    assert decide(done).step == Swap(claim, record.activate(claim))


def test_so_does_who_was_asked_to_take_over() -> None:
    conceded = record.concede(PAIRED, A)
    assert decide(_reserves(_won("b", conceded))).step == Reserve()


def test_a_vm_is_started_from_a_disk_that_is_reserved() -> None:
    starts = record.start(record.cold("a"), A)
    s = _reserves(_shares(_at("a", starts, vm=None)))
    assert decide(s).step == Reserve()
    assert decide(replace(s, done=frozenset({Reserve}))).step == StartVm(VmRole.PRIMARY, A)
    running = VmFacts(A, VmRole.PRIMARY, alive=True)
    assert decide(replace(s, vm=running)).step == Reserve(), "by a daemon that was started again"


def test_a_disk_that_is_not_reserved_lets_nothing_leave_and_is_tried_again() -> None:
    s = replace(_reserves(_won("b", CLAIMED_B)), failure=Failure(Reserve(), "no answer", NOW))
    d = decide(s)
    assert d.sentence == (
        "output stays withheld: reserving the disk for this host failed, it is tried again: "
        "no answer"
    )
    assert (d.mode, d.step) == (Mode.WITHHOLD, None)
    assert decide(replace(s, now_ns=NOW + 1_000 * MS)).step == Reserve()


def test_a_reservation_does_not_stand_for_a_fence_command() -> None:
    s = replace(_reserves(_won("b", CLAIMED_B)), fence=BEFORE)
    assert decide(s).step == Reserve()
    assert decide(replace(s, done=frozenset({Reserve}))).step == Fence(
        "a", CLAIMED_B.generation, "silent"
    )


def _acts_before_anything_leaves(won: Snapshot, acts: Step, mode: Mode) -> None:
    me, active = won.who.host, record.activate(won.record) if won.record else None
    assert active is not None
    d = decide(_won(me, active))
    assert (d.state, d.mode, d.step) == (State.CLAIMED, mode, acts)
    clean = replace(won.vm, clean=True) if won.vm else None
    assert decide(_won(me, active, vm=clean)).step == GoPublic()


def test_the_secondary_is_settled_before_the_other_host_is_turned_off() -> None:
    loading = VmFacts(B, VmRole.SECONDARY, alive=True, clean=False)
    assert decide(_won("b", CLAIMED_B, vm=loading)).step == Yank()


def test_a_winner_that_died_while_it_wrote_leaves_a_disk_that_nobody_starts() -> None:
    active = record.activate(CLAIMED_B)
    b = decide(_won("b", active, vm=None))
    assert (b.state, b.step) == (State.STUCK, None)
    assert decide(_won("a", active, vm=None)).step is None


def test_what_it_could_not_do_is_tried_again_and_nothing_leaves() -> None:
    active = record.activate(CLAIMED_B)
    s = _won("b", active)
    failure = Failure(TakeOver(), "no answer", NOW)
    d = decide(replace(s, failure=failure))
    assert (d.sentence, d.step) == ("taking over: trying again after no answer", None)
    assert d.mode is Mode.WITHHOLD
    later = replace(s, failure=failure, now_ns=NOW + 1_000 * MS)
    assert decide(later).step == TakeOver()


@pytest.mark.parametrize("paused", [False, True])
def test_in_a_switchover_the_primarys_vm_is_ended_first(paused: bool) -> None:
    s = _shares(_at("a", PAIRED, request=REQUEST, checkpoints=LOADED, paused=paused))
    assert decide(s).step == EndVm(A)
    gone = replace(s, vm=None)
    assert decide(gone).step == Swap(PAIRED, record.concede(PAIRED, A))
    conceded = record.concede(PAIRED, A)
    assert decide(_won("b", conceded)).step == Swap(conceded, record.activate(conceded))


@pytest.mark.parametrize("me", ["a", "b"])
def test_a_host_that_says_its_vm_is_gone_is_given_time_to_concede(me: str) -> None:
    """Else the fence command would turn off a host that is well."""
    vm = VmFacts(A if me == "a" else B, VmRole.PRIMARY, alive=True, colo_exit_ns=NOW)
    s = _shares(_says(me, PAIRED, health=VmHealth.GONE))
    d = decide(replace(s, vm=vm))
    assert d.step is None
    assert d.sentence.endswith("says that its VM is gone: it concedes")
    late = replace(vm, colo_exit_ns=NOW - 600 * MS)
    step = decide(replace(s, vm=late)).step
    assert isinstance(step, Swap)
    assert step.new.kind is Kind.CLAIMED


@pytest.mark.parametrize(("ago_ns", "step"), [(0, None), (SILENT, ContinueAlone())])
def test_a_vm_that_serves_and_stands_for_its_disk_is_run_again_after_a_rest(
    ago_ns: int, step: object
) -> None:
    active = record.activate(CLAIMED_A)
    vm = VmFacts(A, VmRole.PRIMARY, alive=True, waits_ns=NOW - ago_ns)
    d = decide(_won("a", active, vm=vm, mode=Mode.SOLO, public=True))
    assert (d.state, d.mode, d.step) == (State.SOLO, Mode.SOLO, step)
    assert d.sentence == "alone, unprotected: the VM stands until its disk answers"


# --- checkpoints ------------------------------------------------------------------------------


def _machine() -> PrimaryCheckpoints:
    machine = PrimaryCheckpoints(Limits(200 * MS, 10_000 * MS, 60_000 * MS, stands_first=True))
    machine.begin(Turn(5, Phase.OPEN), 0, restarted=False)
    machine.ask(Cause.MISMATCH, 1, 5)
    assert machine.look(1, taken=5, armed=5, listening=True) == [Announce(6)]
    return machine


def _command(actions: list[Any]) -> Command:
    (command,) = [a for a in actions if isinstance(a, Command)]
    return command


def test_the_vm_stands_before_qemu_is_asked_for_a_checkpoint() -> None:
    machine = _machine()
    stop = _command(machine.look(2, taken=6, armed=6, listening=True))
    assert stop.what is Do.STOP_VM
    query = _command(machine.vm_event(VmEvent(VmEventKind.STOP, 3), 0))
    assert query.what is Do.QUERY_STATUS
    trigger = _command(machine.replied(query, True, 0))
    assert trigger.what is Do.TRIGGER
    machine.failed(trigger, "the epoch of a disk could not begin")
    assert machine.broken == "trigger: the epoch of a disk could not begin"


def test_a_vm_that_stands_for_its_disk_ends_the_pair() -> None:
    machine = _machine()
    machine.vm_event(VmEvent(VmEventKind.BLOCK_ERROR, 2, {"action": "report"}), 0)
    assert not machine.broken
    machine.vm_event(VmEvent(VmEventKind.BLOCK_ERROR, 2, {"action": "stop"}), 0)
    assert machine.broken == "the secondary did not take what the shared disk had"


STANDS = {"event": "BLOCK_IO_ERROR", "data": {"action": "stop", "reason": "no room"}}
LEFT = {"event": "COLO_EXIT", "data": {"mode": "secondary"}}


@pytest.mark.parametrize(
    ("events", "past"),
    [
        ([STANDS], Past(waits=True, spoilt=True)),
        ([STANDS, {"event": "RESUME"}], Past(spoilt=True)),
        ([STANDS, LEFT], Past(waits=True, spoilt=True, left=True)),
        ([LEFT, STANDS], Past(waits=True, left=True)),  # no load will come
    ],
)
def test_what_a_daemon_learns_that_was_not_there(events: list[dict[str, Any]], past: Past) -> None:
    assert follow(Past(), events) == past
