# SPDX-License-Identifier: GPL-2.0-only
"""Both sides' epoch turns, event by event. Schedules that break a naive turn are among them."""

from __future__ import annotations

import pytest

from colo_ebpf.control.checkpoint.primary import (
    Announce,
    Cause,
    Command,
    Do,
    Flush,
    Limits,
    PrimaryCheckpoints,
    WriteTurn,
    next_epoch,
)
from colo_ebpf.control.checkpoint.secondary import Note, SecondaryCheckpoints
from colo_ebpf.model import Phase, Settled, Turn, VmEvent, VmEventKind

MS = 1_000_000
LIMITS = Limits(arm_ns=200 * MS, checkpoint_ns=10_000 * MS, longest_epoch_ns=60_000 * MS)


def _event(kind: VmEventKind, at_ns: int = 0) -> VmEvent:
    return VmEvent(kind, at_ns)


class Primary:
    """A primary in epoch 5, and everything it wanted done."""

    def __init__(self) -> None:
        self.machine = PrimaryCheckpoints(LIMITS)
        self.machine.begin(Turn(5, Phase.OPEN), 0, restarted=False)
        self.told = 0  # loads that the secondary has said

    def look(self, now_ns: int = 0, armed: int = 0, listening: bool = True) -> list[object]:
        return list(self.machine.look(now_ns, taken=armed, armed=armed, listening=listening))

    def on(self, kind: VmEventKind, at_ns: int = 0) -> list[object]:
        return list(self.machine.vm_event(_event(kind, at_ns), self.told))

    def answer(self, actions: list[object], stopped: bool = True) -> list[object]:
        (command,) = [a for a in actions if isinstance(a, Command)]
        return list(self.machine.replied(command, stopped, self.told))

    def triggered(self, cause: Cause = Cause.MISMATCH) -> Primary:
        self.machine.ask(cause, 1, 5)
        assert self.look() == [Announce(6)]
        actions = self.look(armed=6)
        assert actions[0] == WriteTurn(5, Phase.TURNING)
        assert isinstance(actions[1], Command)
        assert actions[1].what is Do.TRIGGER
        return self


def test_a_proven_turn_opens_the_epoch_and_flushes_at_resume() -> None:
    p = Primary().triggered()
    stop = p.on(VmEventKind.STOP, 10 * MS)
    assert stop[0] == WriteTurn(6, Phase.TURNING)
    assert p.answer(stop) == [WriteTurn(6, Phase.OPEN)]
    p.on(VmEventKind.MIGRATION_PASS)
    assert p.on(VmEventKind.RESUME, 22 * MS) == [Flush()]
    loaded = p.machine.loaded
    assert loaded is not None
    assert (loaded.epoch, loaded.pause_ns, loaded.cause) == (6, 12 * MS, Cause.MISMATCH)
    assert p.machine.settled_epoch


def test_a_resume_before_the_answer_proves_nothing() -> None:
    p = Primary().triggered()
    stop = p.on(VmEventKind.STOP)
    p.on(VmEventKind.MIGRATION_PASS)
    assert p.on(VmEventKind.RESUME) == [WriteTurn(6, Phase.TURNING)]
    assert p.answer(stop, stopped=False) == []
    assert p.machine.loaded is None
    assert p.look() == [Announce(7)]


def test_a_resume_without_a_pass_is_an_operators_cont() -> None:
    p = Primary().triggered()
    p.answer(p.on(VmEventKind.STOP))
    assert Flush() not in p.on(VmEventKind.RESUME)
    assert p.machine.pending == {Cause.MISMATCH, Cause.UNPROVEN}


def _resumed(p: Primary) -> list[object]:
    """A checkpoint of a QEMU that sends no MIGRATION_PASS, up to its RESUME."""
    p.answer(p.on(VmEventKind.STOP, 10 * MS))
    p.told += 1
    return p.on(VmEventKind.RESUME, 22 * MS)


def test_without_a_pass_the_secondarys_word_proves_the_load_once_a_query_is_answered() -> None:
    p = Primary().triggered()
    asked = _resumed(p)
    assert [a.what for a in asked if isinstance(a, Command)] == [Do.QUERY_STATUS]
    assert Flush() not in asked
    assert not p.machine.settled_epoch
    assert p.answer(asked, stopped=False) == [Flush()]
    loaded = p.machine.loaded
    assert loaded is not None
    assert (loaded.epoch, loaded.resumed_ns, loaded.pause_ns) == (6, 22 * MS, 12 * MS)
    assert p.machine.settled_epoch


def test_a_word_that_may_be_of_a_later_checkpoint_proves_nothing() -> None:
    """An operator's `cont`, read so late that the checkpoint after it has been loaded as well."""
    p = Primary().triggered()
    asked = _resumed(p)
    assert p.on(VmEventKind.STOP, 23 * MS) == [WriteTurn(6, Phase.TURNING)]
    assert p.answer(asked, stopped=True) == []
    assert p.on(VmEventKind.RESUME, 24 * MS) == []
    assert p.machine.loaded is None
    assert p.machine.pending == {Cause.MISMATCH, Cause.UNPROVEN}


def test_a_word_from_before_the_stop_proves_nothing() -> None:
    p = Primary().triggered()
    p.told += 1
    p.answer(p.on(VmEventKind.STOP))
    assert p.on(VmEventKind.RESUME) == [WriteTurn(6, Phase.TURNING)]
    assert p.machine.pending == {Cause.MISMATCH, Cause.UNPROVEN}


def test_an_answer_that_is_lost_leaves_no_proof() -> None:
    p = Primary().triggered()
    (query,) = [a for a in _resumed(p) if isinstance(a, Command)]
    assert p.machine.failed(query, "no answer") == [WriteTurn(6, Phase.TURNING)]
    assert not p.machine.broken
    assert p.look() == [Announce(7)]


@pytest.mark.parametrize("kind", [VmEventKind.COLO_EXIT, VmEventKind.DISK_BAD])
def test_what_fails_before_the_answer_breaks_the_pair(kind: VmEventKind) -> None:
    p = Primary().triggered()
    asked = _resumed(p)
    assert p.on(kind) == [WriteTurn(6, Phase.TURNING)]
    assert p.answer(asked) == []
    assert p.machine.broken


def test_a_vm_that_was_stopped_first_needs_the_same_proof() -> None:
    p = Primary().triggered()
    for epoch in (7, 8):
        p.on(VmEventKind.STOP)
        p.on(VmEventKind.RESUME)
        p.look()
        actions = p.look(armed=epoch)
    p.answer(p.on(VmEventKind.STOP))
    p.told += 1
    assert p.answer(p.on(VmEventKind.RESUME)) == [Flush()]
    assert [a for a in actions if isinstance(a, Command)]


def test_checkpoints_that_are_never_proven_end_the_pair_and_say_so() -> None:
    """As found with QEMU 11: 1,690 of them back to back in a minute."""
    p = Primary().triggered(Cause.WARM_UP)
    taken = 1
    for epoch in range(7, 40):
        p.answer(p.on(VmEventKind.STOP))
        p.on(VmEventKind.RESUME)
        if p.machine.broken:
            break
        taken += 1
        p.look()
        p.look(armed=epoch)
    assert taken == 8
    assert p.machine.broken == (
        "8 checkpoints in a row are not proven to be loaded: neither QEMU's events nor its COLO"
        " trace show it"
    )
    assert p.look() == []


def test_a_stop_nobody_armed_holds_everything() -> None:
    p = Primary()
    assert p.on(VmEventKind.STOP) == [WriteTurn(5, Phase.TURNING)]
    assert p.on(VmEventKind.RESUME) == []
    assert p.look() == [Announce(6)]


def test_after_two_unproven_turns_the_vm_is_stopped_first() -> None:
    p = Primary().triggered()
    for epoch in (7, 8):
        p.on(VmEventKind.STOP)
        p.on(VmEventKind.RESUME)
        assert p.look() == [Announce(epoch)]
        actions = p.look(armed=epoch)
    assert isinstance(actions[1], Command)
    assert actions[1].what is Do.STOP_VM
    stop = p.on(VmEventKind.STOP)
    proven = p.answer(stop)
    assert proven[0] == WriteTurn(8, Phase.OPEN)
    assert isinstance(proven[-1], Command)
    assert proven[-1].what is Do.TRIGGER
    p.on(VmEventKind.MIGRATION_PASS)
    assert p.on(VmEventKind.RESUME) == [Flush()]


@pytest.mark.parametrize("kind", [VmEventKind.COLO_EXIT, VmEventKind.DISK_BAD])
def test_after_colo_or_the_childs_disk_failed_nothing_opens_or_flushes(kind: VmEventKind) -> None:
    p = Primary().triggered()
    p.answer(p.on(VmEventKind.STOP))
    p.on(VmEventKind.MIGRATION_PASS)
    assert p.on(kind) == [WriteTurn(6, Phase.TURNING)]
    assert p.on(VmEventKind.RESUME) == []
    assert p.machine.broken


def test_a_silent_secondary_is_not_waited_for() -> None:
    p = Primary()
    p.machine.ask(Cause.HOLD_AGE, 0, 5)
    p.look()
    assert p.look(now_ns=1, listening=False)[0] == WriteTurn(5, Phase.TURNING)
    q = Primary()
    q.machine.ask(Cause.HOLD_AGE, 0, 5)
    q.look()
    assert q.look(now_ns=199 * MS) == []
    assert q.look(now_ns=200 * MS)[0] == WriteTurn(5, Phase.TURNING)


def test_a_checkpoint_that_hangs_ends_the_pair() -> None:
    p = Primary().triggered()
    p.on(VmEventKind.STOP, 5 * MS)
    assert p.look(now_ns=10_005 * MS) == [WriteTurn(6, Phase.TURNING)]
    assert "stuck" in p.machine.broken


def test_requests_during_a_turn_are_answered_by_it_unless_they_are_newer() -> None:
    p = Primary().triggered()
    p.machine.ask(Cause.HOLD_AGE, 2, 5)
    p.answer(p.on(VmEventKind.STOP))
    p.machine.ask(Cause.OPERATOR, 3)
    p.on(VmEventKind.MIGRATION_PASS)
    p.on(VmEventKind.RESUME)
    assert p.machine.pending == {Cause.OPERATOR}


def test_a_warm_up_is_any_checkpoint_that_was_loaded() -> None:
    p = Primary().triggered(Cause.WARM_UP)
    p.answer(p.on(VmEventKind.STOP))
    p.machine.ask(Cause.WARM_UP, 9)
    p.on(VmEventKind.MIGRATION_PASS)
    p.on(VmEventKind.RESUME)
    assert p.machine.pending == frozenset()


def test_an_old_complaint_does_not_ask_again() -> None:
    p = Primary()
    p.machine.ask(Cause.MISMATCH, 0, 4)
    assert p.look() == []


def test_the_longest_epoch_is_a_cause() -> None:
    assert Primary().look(now_ns=60_000 * MS) == [Announce(6)]


def test_a_restart_skips_what_may_have_been_announced() -> None:
    p = PrimaryCheckpoints(LIMITS)
    p.begin(Turn(5, Phase.TURNING), 0, restarted=True)
    (announce,) = p.look(0, taken=0, armed=0, listening=True)
    assert isinstance(announce, Announce)
    assert announce.epoch > 5 + 1


def test_the_reserved_tag_is_left_out() -> None:
    assert next_epoch(0xFFFF) == 0x10001


# --- the secondary ------------------------------------------------------------------------


def _secondary() -> SecondaryCheckpoints:
    s = SecondaryCheckpoints(200 * MS)
    s.begin(Turn(0, Phase.OPEN), None, 0, Settled.CURRENT, 0)
    return s


def _load(s: SecondaryCheckpoints, epoch: int) -> list[WriteTurn]:
    s.announced(epoch)
    cells = s.vm_event(_event(VmEventKind.STOP), Settled.OPEN)
    s.vm_event(_event(VmEventKind.RESUME), Settled.NEW)
    return cells


def test_an_armed_stop_writes_the_announced_epoch() -> None:
    s = _secondary()
    assert _load(s, 9) == [WriteTurn(9, Phase.OPEN)]
    assert (s.loaded, s.want) == (9, "")


def test_a_stop_that_was_not_armed_matches_nothing_and_asks() -> None:
    s = _secondary()
    _load(s, 9)
    assert s.vm_event(_event(VmEventKind.STOP), Settled.OPEN) == [WriteTurn(0, Phase.OPEN)]
    assert s.want
    assert not s.announced(9), "an epoch that was used is not armed again"


def test_a_load_that_failed_before_it_was_received_turns_back() -> None:
    s = _secondary()
    _load(s, 9)
    s.announced(10)
    s.vm_event(_event(VmEventKind.STOP), Settled.OPEN)
    back = s.vm_event(_event(VmEventKind.COLO_EXIT), Settled.OLD)
    assert back == [WriteTurn(9, Phase.OPEN)]


def test_after_a_restart_loads_that_nobody_saw_lose_the_epoch() -> None:
    note = Note(epoch=9, before=8, loads=3, highest=9)
    s = SecondaryCheckpoints(200 * MS)
    assert s.begin(Turn(9, Phase.OPEN), note, 3, Settled.NEW, 0) == []
    assert s.loaded == 9
    t = SecondaryCheckpoints(200 * MS)
    assert t.begin(Turn(9, Phase.OPEN), note, 4, Settled.NEW, 0) == [WriteTurn(0, Phase.OPEN)]
    assert t.want


def test_the_failovers_own_stop_is_no_checkpoint() -> None:
    s = _secondary()
    _load(s, 9)
    assert s.settle(Settled.NEW, 1) == []
    assert s.vm_event(_event(VmEventKind.STOP), Settled.CURRENT) == []
    assert s.epoch == 9


def test_epochs_of_an_earlier_pairing_are_not_armed_again() -> None:
    s = _secondary()
    _load(s, 9)
    s.end()
    s.begin(Turn(9, Phase.OPEN), None, 0, Settled.CURRENT, 0)
    assert not s.announced(4)
    assert s.highest == 9


def _powered_off() -> SecondaryCheckpoints:
    s = _secondary()
    _load(s, 9)
    s.vm_event(VmEvent(VmEventKind.SHUTDOWN, 0, {"guest": True}), Settled.NEW)
    return s


def test_a_poweroffs_stop_is_no_checkpoint_and_the_load_that_follows_has_none() -> None:
    s = _powered_off()
    assert s.vm_event(_event(VmEventKind.STOP), Settled.NEW) == []
    assert (s.epoch, s.loaded, s.armed, s.want) == (9, 9, 0, "")
    assert not s.announced(11), "its STOP would not come"
    assert s.vm_event(_event(VmEventKind.RESUME), Settled.NEW) == [WriteTurn(0, Phase.OPEN)]
    assert s.want
    assert s.counted(2) == [], "that load is accounted for"
    assert _load(s, 12) == [WriteTurn(12, Phase.OPEN)]


def test_a_poweroff_inside_a_load_changes_nothing() -> None:
    s = _secondary()
    s.announced(9)
    s.vm_event(_event(VmEventKind.STOP), Settled.OPEN)
    s.vm_event(VmEvent(VmEventKind.SHUTDOWN, 0, {"guest": True}), Settled.OPEN)
    assert s.vm_event(_event(VmEventKind.RESUME), Settled.NEW) == []
    assert (s.epoch, s.loaded, s.want) == (9, 9, "")


def test_an_epoch_that_was_bounded_is_not_in_the_next_pairing() -> None:
    p = Primary()
    p.machine.longest_epoch_ns = 100 * MS
    assert p.machine.quiet_until_ns() == 100 * MS
    p.machine.end()
    p.machine.begin(Turn(9, Phase.OPEN), 0, restarted=False)
    assert p.machine.quiet_until_ns() == LIMITS.longest_epoch_ns
