# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon counts for monitoring: pauses, reactions, pairings that failed, long silences."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf.control.checkpoint.histogram import BOUNDS_NS, Histogram
from colo_ebpf.control.core.back_off import BackOff
from colo_ebpf.control.peer.envelope import Seal
from colo_ebpf.control.peer.state import Path, PeerState, PeerView, words
from tests import statuses
from tests.deadlines import DEADLINES

MS = 1_000_000
SEAL = Seal(b"0123456789abcdef")
RUN = SEAL.begin()


@given(st.lists(st.integers(min_value=0, max_value=30_000 * MS)))
def test_each_bound_has_all_that_took_no_longer(spans_ns: list[int]) -> None:
    counted = Histogram()
    for span_ns in [*spans_ns, *BOUNDS_NS]:
        counted.add(span_ns)
    plain, all_ns = counted.plain(), [*spans_ns, *BOUNDS_NS]
    assert [bound_s for bound_s, _ in plain["up_to"]] == [ns / 1e9 for ns in BOUNDS_NS]
    for (_, reached), bound_ns in zip(plain["up_to"], BOUNDS_NS, strict=True):
        assert reached == sum(span_ns <= bound_ns for span_ns in all_ns)
    assert (plain["count"], plain["sum_s"]) == (len(all_ns), sum(all_ns) / 1e9)


def test_every_checkpoint_that_is_loaded_is_counted() -> None:
    points = statuses.of_pair("a")["checkpoints"]
    for what in ("pauses", "reactions"):
        assert points[what]["count"] == points["total"] > 0
    recent_s = sum(one["pause_ms"] for one in points["recent"]) / 1e3
    assert points["pauses"]["sum_s"] >= recent_s * 0.999


def test_pairings_that_failed_are_counted_for_ever() -> None:
    rests = BackOff()
    rests.failed(0)
    rests.failed(0)
    rests.paired()
    rests.hear("another run", 0)
    assert rests.total == 2


def _said(number: int, boot: str = "theirs") -> bytes:
    return RUN.close(number, words(PeerState(vm="web", host="b", boot=boot, echo="mine")))


def test_a_silence_near_the_timeout_is_counted_on_its_path() -> None:
    timing = dataclasses.replace(DEADLINES, heartbeat_ns=30 * MS, peer_timeout_ns=150 * MS)
    assert timing.long_silence_ns == 126 * MS, "a pair at rest speaks every 90 ms"
    view = PeerView("web", "b", "mine", SEAL, started_ns=0, long_ns=timing.long_silence_ns)
    at_ns = 0
    for number, silent_ms in enumerate((500, 126, 127, 90, 140), 1):
        at_ns += silent_ms * MS
        view.receive(_said(number), Path.LINK, at_ns)
    assert view.long_silences(Path.LINK) == 2, "the first silence was before it was heard"
    assert view.long_silences(Path.MANAGEMENT) == 0
    view.receive(_said(1, "another run"), Path.LINK, at_ns + 5_000 * MS)
    view.receive(_said(2, "another run"), Path.LINK, at_ns + 5_001 * MS)
    assert view.long_silences(Path.LINK) == 2, "its daemon was away, and the count goes on"
