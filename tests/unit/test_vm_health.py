# SPDX-License-Identifier: GPL-2.0-only
"""When a replica may be made the only one, and when it wants a checkpoint."""

from __future__ import annotations

import pytest

from colo_ebpf.control.core.vm_health import RELAPSES, ROOM_BYTES, Fitness
from colo_ebpf.model import OverlayUse

MIB = 1 << 20


def _use(used: int, limit: int, free: int = 100 * MIB) -> OverlayUse:
    return OverlayUse(0, used, limit, free)


@pytest.mark.parametrize(
    ("uses", "wants"),
    [
        ([], False),
        ([_use(MIB // 2, 32 * MIB)], False),
        ([_use(16 * MIB - 1, 32 * MIB)], False),
        ([_use(16 * MIB, 32 * MIB)], True),
        ([_use(0, 32 * MIB), _use(16 * MIB, 32 * MIB)], True),
        ([_use(600 << 10, MIB)], False),  # two empty overlays take half a MiB
        ([_use(MIB, MIB)], True),
    ],
)
def test_half_full_wants_a_checkpoint_and_is_fit(uses: list[OverlayUse], wants: bool) -> None:
    f = Fitness()
    f.overlays(uses, 5)
    assert bool(f.want) is wants
    assert f.unfit(replica=True) == ""
    f.overlays([], 6)
    assert f.want == ""


def test_no_room_is_unfit_until_a_load_that_began_later() -> None:
    f = Fitness()
    f.overlays([_use(2 * MIB, 4 * MIB, ROOM_BYTES - 1)], 5)
    assert "no room" in f.unfit(replica=True)
    assert f.want == f.unfit(replica=True)
    f.loaded(5)
    assert f.unfit(replica=True)
    f.loaded(6)
    assert (f.unfit(replica=True), f.want) == ("", "")


def test_a_request_that_failed_under_a_load_counts_against_the_next() -> None:
    """Six loads were begun: the trace will show six, and the failure may be of the new state."""
    f = Fitness()
    f.failed("its disk failed", 6)
    f.loaded(6)
    assert f.unfit(replica=True)
    f.failed("its disk failed", 4)  # told late: it does not heal sooner
    f.loaded(6)
    assert f.unfit(replica=True)


def test_what_fails_again_after_each_checkpoint_failed_for_good() -> None:
    f = Fitness()
    for load in range(RELAPSES):
        assert not f.lasting
        f.failed("its disk failed", load)
        f.failed("its disk failed", load)
        f.loaded(load + 1)
    assert "again after each of 2 checkpoints" in f.unfit(replica=True)
    assert f.want == "", "no checkpoint helps"


def test_failures_far_apart_are_each_the_first() -> None:
    f = Fitness()
    for load in range(0, 20, 2):
        f.failed("its disk failed", load)
        f.loaded(load + 1)
    assert f.unfit(replica=True) == ""


def test_the_vm_that_serves_is_not_healed_by_anything() -> None:
    f = Fitness()
    f.failed("its disk failed", None)
    f.loaded(10)
    assert f.unfit(replica=False) == "its disk failed"


def test_what_went_by_with_a_load_does_not_count_once_it_serves() -> None:
    f = Fitness()
    f.failed("its disk failed", 3)
    assert f.unfit(replica=False) == ""


def test_one_that_was_promoted_was_whole_then() -> None:
    """A daemon that adopts it hears of failures of its time as a replica, and of no load since."""
    f = Fitness()
    f.failed("its disk failed at some time", 3)
    f.serves()
    assert (f.unfit(replica=True), f.want) == ("", "")
    f.failed("its disk failed", None)
    f.serves()
    assert f.unfit(replica=False)


def test_a_monitor_that_closed_is_not_complained_of_before_its_process_outlives_it() -> None:
    f = Fitness()
    f.lost_ns = 1_000
    f.outlives_monitor(1_100, 100)
    assert (f.unfit(False), f.complaint(False)) == ("its QEMU does not answer", "")
    f.outlives_monitor(1_101, 100)
    assert f.complaint(replica=False) == "its QEMU does not answer"
