# SPDX-License-Identifier: GPL-2.0-only
"""When the peer's plane was heard is written down once a tick of the kernel, not for each frame."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from colo_ebpf.datapath.bpf.abi import LiveWord
from colo_ebpf.model import Mode, VmRole
from tests.bpf.frames import beacon
from tests.bpf.rig import Rig

_SIDES = {
    VmRole.PRIMARY: (Mode.PRIMARY, "cmp-svm"),
    VmRole.SECONDARY: (Mode.SECONDARY, "mir-link"),
}
_PATIENCE_S = 2.0
_TRIES = 50  # some of them within one tick


def _until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not found():
        assert time.monotonic() < deadline, "the peer's frame is not written down"


@pytest.fixture(params=_SIDES)
def role(request: pytest.FixtureRequest) -> VmRole:
    role: VmRole = request.param
    return role


def test_who_was_silent_is_heard_with_its_next_frame(role: VmRole) -> None:
    """Within a tick, too: the clock is read once in it, but the peer was silent meanwhile."""
    with Rig(role) as rig:
        rig.pair(mode=_SIDES[role][0])
        for n in range(_TRIES):
            rig.plane._set_live(LiveWord.HEARD_NS, n % 2)
            rig.from_peer(beacon(), 1)
            _until(lambda: rig.plane.link_heard_ns() > 1)


def test_a_plane_that_goes_on_is_heard_anew(role: VmRole) -> None:
    with Rig(role) as rig:
        rig.pair(mode=_SIDES[role][0])
        first = rig.plane.link_heard_ns()

        def again() -> bool:
            rig.from_peer(beacon(), 1)
            return rig.plane.link_heard_ns() > first

        for _ in range(3):
            _until(again)
            first = rig.plane.link_heard_ns()


def test_what_another_cpu_has_heard_later_stands(role: VmRole) -> None:
    mode, program = _SIDES[role]
    with Rig(role) as rig:
        rig.pair(mode=mode)
        rig.from_peer(beacon(), 1)
        before = rig.count(program, "drop", "beacon")
        later = rig.plane.link_heard_ns() + 1
        rig.plane._set_live(LiveWord.HEARD_NS, later)
        rig.from_peer(beacon(), 1)
        _until(lambda: rig.count(program, "drop", "beacon") == before + 1)
        assert rig.plane.link_heard_ns() >= later
