# SPDX-License-Identifier: GPL-2.0-only
"""What the time without a replica went into."""

from __future__ import annotations

from colo_ebpf.control.core.healing import Healing, Part, part_of
from colo_ebpf.control.decision.actions import (
    Decision,
    EnterColo,
    State,
    Synchronise,
    Task,
    TaskKind,
)
from tests.sim.host import Host
from tests.sim.test_pair import _until_protected
from tests.sim.world import World

_S = 1_000_000_000
_ALONE, _PAIR = Decision(State.SOLO, ""), Decision(State.PRIMARY, "")
_OFFER = Decision(State.PAIRING, "", task=Task(TaskKind.PAIR, 7))
_READY = Decision(State.PAIRING, "", task=Task(TaskKind.PAIR, 7, "b/1"))


def test_each_decision_is_a_part() -> None:
    looks = [(_ALONE, set()), (_OFFER, set()), (_READY, set()), (_READY, {Synchronise})]
    looks += [(_READY, {Synchronise, EnterColo}), (_PAIR, set())]
    parts = [Part.ALONE, Part.QEMU, Part.DISK, Part.MEMORY, Part.CHECKPOINTS, None]
    assert [part_of(d, done) for d, done in looks] == parts


def test_parts_add_up_to_the_whole() -> None:
    healing, now_ns = Healing(), 5 * _S
    said = [
        healing.look(d, done, "b", now_ns + at_s * _S)
        for d, done, at_s in (
            (_ALONE, set(), 0),
            (_ALONE, set(), 1),
            (_OFFER, set(), 4),
            (_READY, set(), 5),
            (_READY, {Synchronise}, 11),
            (_READY, {Synchronise, EnterColo}, 13),
            (_PAIR, set(), 14),
            (_PAIR, set(), 60),
        )
    ]
    assert said == [False] * 6 + [True, False]
    assert healing.last == (
        "protected after 14.0 s: 4.0 s until b stood by, 1.0 s its QEMU, 6.0 s disk, 2.0 s memory, "
        "1.0 s checkpoints"
    )


def test_an_attempt_that_failed_is_a_part_of_its_own() -> None:
    healing = Healing()
    steps = [(_ALONE, 0), (_OFFER, 1), (_READY, 2), (_ALONE, 9), (_OFFER, 10), (_PAIR, 12)]
    for d, at_s in steps:
        healing.look(d, set(), "b", at_s * _S)
    assert healing.last == (
        "protected after 12.0 s: 2.0 s until b stood by, 8.0 s attempts that failed, 2.0 s its QEMU"
    )


def test_a_takeover_ends_the_count_and_begins_none() -> None:
    healing = Healing()
    healing.look(_OFFER, set(), "b", 0)
    assert not healing.look(Decision(State.CLAIMED, ""), set(), "b", 3 * _S)
    assert not healing.look(_PAIR, set(), "b", 4 * _S), "of what was before nothing is known"
    assert healing.last == ""


def test_a_daemon_says_it_when_its_pair_is_made() -> None:
    world = World(5)
    for host in [Host(world, name) for name in "ab"]:
        host.start_daemon()
    assert _until_protected(world, 20_000)
    core = world.hosts["a"].core
    assert core is not None
    (said,) = [sentence for _, sentence in core.history if sentence.startswith("protected after")]
    assert all(word in said for word in ("until b stood by", "disk", "memory", "checkpoints"))
