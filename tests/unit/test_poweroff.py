# SPDX-License-Identifier: GPL-2.0-only
"""What a guest does with its own VM, fact by fact, and how it is started again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from colo_ebpf.control.core.guest_events import Guest
from colo_ebpf.control.core.requests import Requests
from colo_ebpf.control.decision import poweroff, record
from colo_ebpf.control.decision.actions import Committed, EndVm, Read, State, Swap, Task, TaskKind
from colo_ebpf.control.decision.decide import decide
from colo_ebpf.control.decision.record import Kind, Record
from colo_ebpf.control.decision.snapshot import MS, Failure, Request, Snapshot, VmFacts
from colo_ebpf.control.peer.state import Answer
from colo_ebpf.model import Mode, VmEvent, VmEventKind, VmRole
from tests.unit.test_decide import ACTIVE, COLD, NOW, PAIRED, A, B, _at, _silent

AT_S = 1_700_000_000
OFF = record.power_off(PAIRED, AT_S)
ENDED = VmFacts(A, VmRole.PRIMARY, alive=True, off_at_s=AT_S)
SVM_ENDED = VmFacts(B, VmRole.SECONDARY, alive=True, off_at_s=AT_S)
NEW = "a/00000000000000aa"


def _swap(s: Snapshot) -> Record | None:
    step = decide(s).step
    return step.new if isinstance(step, Swap) else None


# --- written down, then ended ---------------------------------------------------------------


@pytest.mark.parametrize("r", [PAIRED, ACTIVE, record.start(COLD, A), record.claim(PAIRED, A)])
def test_whatever_it_was_doing_it_is_written_down_and_no_checkpoint_begun(r: Record) -> None:
    s = _at("a", r, vm=ENDED)
    new = _swap(s)
    assert new is not None
    assert (new.kind, new.owner, new.off_at_s) == (Kind.OFF, "a", AT_S)
    d = decide(s)
    assert (d.still, d.cancels, d.task) == (True, True, None)
    assert d.sentence == "the guest powered itself off: writing that down"


@pytest.mark.parametrize("r", [PAIRED, record.claim(PAIRED, A)])
def test_an_image_that_lacks_a_write_is_not_the_one_to_start_from(r: Record) -> None:
    """The guest was told that it is done: only the secondary's image has it, so that takes over."""
    new = _swap(_at("a", r, vm=replace(ENDED, fit=False)))
    assert new is None or new.owner == B


def test_a_pair_is_held_meanwhile_and_its_silent_partner_not_bid_against() -> None:
    d = decide(_silent(_at("a", PAIRED, vm=ENDED)))
    assert d.mode is Mode.PRIMARY
    assert "writing that down" in d.sentence


def test_an_arbiter_that_does_not_answer_is_named() -> None:
    failure = Failure(Swap(PAIRED, OFF), "etcd is away", NOW - MS)
    d = decide(_at("a", PAIRED, vm=ENDED, failure=failure))
    assert d.sentence.endswith("writing that down: trying again after etcd is away")
    assert d.step is None


def test_a_pairing_under_way_is_given_up() -> None:
    task = Task(TaskKind.PAIR, 9, B)
    d = decide(_at("a", ACTIVE, vm=ENDED, task=task, mode=Mode.SOLO))
    assert (d.task, d.cancels) == (None, True)
    pending = record.pair(ACTIVE, B, 9)
    d = decide(_at("a", ACTIVE, vm=ENDED, task=task, pending=pending))
    assert "whether the pair is written down is not known" in d.sentence, "that comes first"


def test_a_survivor_merges_its_overlays_first() -> None:
    r = record.activate(record.claim(PAIRED, B))
    d = decide(_at("b", r, vm=SVM_ENDED, mode=Mode.SOLO))
    assert d.sentence == "the guest powered itself off: merging the overlays into the image"
    assert isinstance(d.step, Committed)
    merged = _swap(_at("b", r, vm=SVM_ENDED, done=frozenset({Committed})))
    assert merged == record.commit(r)
    off = _swap(_at("b", record.commit(r), vm=SVM_ENDED))
    assert off is not None
    assert (off.kind, off.owner) == (Kind.OFF, "b")


def test_a_replica_that_is_off_neither_ends_the_pair_nor_keeps_it_from_taking_over() -> None:
    d = decide(_at("b", PAIRED, vm=SVM_ENDED))
    assert (d.state, d.step) == (State.SECONDARY, None)
    new = _swap(_silent(_at("b", PAIRED, vm=SVM_ENDED)))
    assert new == record.claim(PAIRED, B)
    d = decide(_at("b", record.claim(PAIRED, B), vm=SVM_ENDED))
    assert d.state is State.CLAIMED
    assert "powered itself off" not in d.sentence, "its image is not whole: it has to take over"


# --- off --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("me", "vm"), [("a", ENDED), ("b", SVM_ENDED)])
def test_once_it_is_written_down_both_vms_are_ended(me: str, vm: VmFacts) -> None:
    d = decide(_at(me, OFF, vm=vm))
    assert d.state is State.ENDING
    assert d.step == EndVm(vm.instance)


@pytest.mark.parametrize("me", ["a", "b"])
def test_then_nobody_starts_it(me: str) -> None:
    for change in ({}, {"failure": Failure(Read(), "x", NOW - 10_000 * MS)}):
        d = decide(_silent(_at(me, OFF, vm=None, **change)))
        assert (d.state, d.step, d.mode, d.task) == (State.OFF, None, Mode.WITHHOLD, None)
        assert d.sentence == (
            "the guest powered itself off at 2023-11-14 22:13:20 UTC: "
            "`colo-ebpf start` on a starts it again"
        )


def test_when_it_was_is_not_always_known() -> None:
    d = decide(_at("a", record.power_off(PAIRED, 0), vm=None))
    assert d.sentence.startswith("the guest powered itself off: `colo-ebpf start`")


# --- started again ----------------------------------------------------------------------------

REQUEST = Request("t1", NOW - 100 * MS, NEW, starts=True)


def _requested(r: Record, **change: Any) -> Snapshot:
    return _at("a", r, **({"vm": None, "request": REQUEST} | change))


@pytest.mark.parametrize(
    ("s", "why"),
    [
        (_at("a", OFF, vm=None), ""),
        (_at("b", OFF, vm=None), "its image is on a: say it there"),
        (_at("a", PAIRED), "the VM is not off: paired a/"),
        (_at("a", COLD, vm=None), "the VM is not off: cold"),
        (_at("a", None, read_error="away"), "the record is not known: away"),
        (_requested(OFF), "another planned operation is under way"),
    ],
)
def test_where_it_can_be_started(s: Snapshot, why: str) -> None:
    assert poweroff.no_start(s).startswith(why)
    assert bool(poweroff.no_start(s)) == bool(why)


def test_the_operators_word_starts_it_once() -> None:
    started = record.start(OFF, NEW)
    assert _swap(_requested(OFF)) == started
    assert (started.kind, started.vni, started.off_at_s) == (Kind.CLAIMED, 0, 0)
    assert decide(_requested(OFF)).answer is None
    assert decide(_requested(started)).answer is None
    done = decide(_requested(record.activate(started)))
    assert done.answer == Answer("t1", True, "a serves now")


def test_why_it_was_not_started() -> None:
    failure = Failure(Swap(OFF, OFF), "etcd is away", NOW)
    answer = decide(_requested(OFF, failure=failure)).answer
    assert answer == Answer("t1", False, "not started: the record cannot be changed: etcd is away")
    answer = decide(_requested(record.start(OFF, "a/00000000000000bb"))).answer
    assert answer is not None
    assert not answer.done


def test_it_is_no_switchover() -> None:
    requests = Requests("a")
    requests.request = REQUEST
    assert requests.asked_of_peer == ""


# --- what QEMU says -----------------------------------------------------------------------------


def _said(kind: VmEventKind, at_ns: int = 0, **data: object) -> VmEvent:
    return VmEvent(kind, at_ns, data)


SHUTDOWN = _said(VmEventKind.SHUTDOWN, guest=True, reason="guest-shutdown", at_s=AT_S)


def test_a_poweroff_of_the_vm_that_serves_is_final() -> None:
    guest = Guest()
    assert guest.hear(SHUTDOWN, loads=False) == "the guest powered itself off"
    assert guest.hear(_said(VmEventKind.RESUME), loads=False) == ""
    assert guest.off_at_s == AT_S


def test_a_load_makes_a_replica_run_again() -> None:
    guest = Guest()
    guest.hear(SHUTDOWN, loads=True)
    assert guest.ahead(100, 200) == ""
    assert "powered itself off" in guest.ahead(300, 200), "it wants to be loaded"
    guest.hear(_said(VmEventKind.RESUME), loads=True)
    assert (guest.off_at_s, guest.ahead(300, 200)) == (None, "")


def test_qemu_that_is_told_to_end_is_no_poweroff() -> None:
    guest = Guest()
    quit_ = _said(VmEventKind.SHUTDOWN, guest=False, reason="host-qmp-quit")
    assert guest.hear(quit_, loads=False).endswith("not by this daemon (host-qmp-quit)")
    assert guest.off_at_s is None


def test_one_reboot_is_told_once() -> None:
    guest = Guest(panicked=True)
    reset = _said(VmEventKind.RESET, guest=True, reason="guest-reset")
    assert guest.hear(reset, loads=False) == "the guest reboots"
    assert guest.hear(replace(reset, at_ns=40 * MS), loads=False) == ""
    assert (guest.resets, guest.panicked) == (1, False)
    later = _said(VmEventKind.RESET, 9_000 * MS, guest=False, reason="host-qmp-system-reset")
    assert guest.hear(later, loads=False) == "the guest was reset (host-qmp-system-reset)"


def test_a_panic_is_shown_until_it_reboots() -> None:
    guest = Guest()
    assert "panicked" in guest.hear(_said(VmEventKind.PANICKED), loads=False)
    assert guest.panicked
