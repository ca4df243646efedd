# SPDX-License-Identifier: GPL-2.0-only
"""Handing offsets over: all arrive, once and in order, whatever the heartbeats go through."""

from __future__ import annotations

import random
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf.control.core.core import Core
from colo_ebpf.control.core.seqadj_handover import PER_DATAGRAM, OffsetCopy
from colo_ebpf.control.decision.actions import Task, TaskKind
from colo_ebpf.control.peer.state import PeerState


def _state(copy: OffsetCopy, peer: PeerState | None) -> PeerState:
    at, part = copy.part(peer)
    return PeerState(vm="v", host="a", boot="x", offsets_at=at, offsets=part)


@given(st.integers(0, 5 * PER_DATAGRAM), st.integers(0, 2**32))
def test_losses_and_repetitions_do_no_harm(count: int, seed: int) -> None:
    rng = random.Random(seed)
    primary, secondary = OffsetCopy(), OffsetCopy()
    entries = [i.to_bytes(20, "big") for i in range(count)]
    primary.offer(entries)
    secondary.begin(7)
    learnt: list[bytes] = []
    said: PeerState | None = None
    flight: list[PeerState] = []
    for _ in range(60):
        if rng.random() < 0.7:
            said = PeerState(vm="v", host="b", boot="y", offsets_have=secondary.have)
        flight.append(_state(primary, said))
        if rng.random() < 0.7:
            learnt += secondary.take(rng.choice(flight))
    for _ in range(60):
        said = PeerState(vm="v", host="b", boot="y", offsets_have=secondary.have)
        learnt += secondary.take(_state(primary, said))
    assert learnt == entries
    assert secondary.have == count


def test_another_pairing_begins_anew() -> None:
    secondary = OffsetCopy(have=3, _vni=7)
    secondary.begin(7)
    assert secondary.have == 3
    secondary.begin(8)
    assert secondary.have == 0


def test_nothing_is_taken_before_the_vm_of_this_pairing_is_there() -> None:
    """As found: what came while the VM before was still being ended was learnt, counted as had, and
    forgotten when the new one was started. After the next takeover the clients' connections ended.
    """
    entry, learnt = bytes(20), list[bytes]()
    core = SimpleNamespace(
        attempt=SimpleNamespace(task=Task(TaskKind.JOIN, 7, "b/new")),
        peer=SimpleNamespace(state=PeerState(vm="v", host="a", boot="x", vni=7, offsets=[entry])),
        vm=SimpleNamespace(instance="b/old"),
        offsets=OffsetCopy(),
        plane=SimpleNamespace(learn_offsets=learnt.extend),
    )
    core.offsets.begin(7)
    Core._take_offsets(core)  # type: ignore[arg-type]
    assert (learnt, core.offsets.have) == ([], 0)
    core.vm.instance = "b/new"
    Core._take_offsets(core)  # type: ignore[arg-type]
    assert (learnt, core.offsets.have) == ([entry], 1)
