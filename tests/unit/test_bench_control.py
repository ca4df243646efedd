# SPDX-License-Identifier: GPL-2.0-only
"""The control part of the benchmarks: what it makes of what it reads."""

from __future__ import annotations

import pytest

from colo_ebpf.bench.pair import failover, idle, reaction, stall
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.workload import Gaps

_ROLLUP = """\
56-7f [rollup]
Rss:               57400 kB
Pss:               50000 kB
Pss_Dirty:         40000 kB
Private_Clean:      1000 kB
Private_Dirty:     39000 kB
Private_Hugetlb:    9999 kB
"""


def test_processor_time_is_that_of_all_threads() -> None:
    assert idle.cpu_s(["1500000000 7 3\n", "250000000 0 1\n"]) == 1.75


def test_memory_counts_the_named_lines_only() -> None:
    assert idle.memory_bytes(_ROLLUP, ("Pss:",)) == 50000 << 10
    assert idle.memory_bytes(_ROLLUP, ("Private_Clean:", "Private_Dirty:")) == 40000 << 10


def test_a_checkpoint_somebody_asked_for_has_a_cause() -> None:
    before = {"operator": 1, "mismatch": 2}
    after = {"operator": 4, "mismatch": 2, "hold-age": 1, "longest-epoch": 1}
    assert reaction.causes_between(before, after) == {"hold-age": 1}


def test_what_was_said_before_the_kill_does_not_count() -> None:
    history = [
        {"at_ns": 5, "sentence": "alone, unprotected"},
        {"at_ns": 11, "sentence": "bidding to go on alone: a is not heard on any path"},
        {"at_ns": 12, "sentence": "alone, unprotected: merging the overlays into the image"},
        {"at_ns": 13, "sentence": "alone, unprotected"},
    ]
    assert failover.said_after(history, 10, "alone, unprotected") == 12
    with pytest.raises(BenchError, match="did not say"):
        failover.said_after(history, 13, "bidding")


def test_the_segment_that_only_the_primary_says() -> None:
    frame = stall.segment(1001, 0x18, b"data")
    assert frame[12:14] == b"\x08\x00"
    assert int.from_bytes(frame[16:18]) == len(frame) - 14
    assert frame[-4:] == b"data"


def test_a_silence_belongs_to_what_it_begins_in_and_counts_whole() -> None:
    gaps = Gaps([1.0, 1.01, 1.06, 1.07, 1.27, 1.28])
    failed_over, new_pair_made = 1.0, 1.05  # the first answer after the failover came later
    assert gaps.longest_begun_ms(failed_over, new_pair_made) == pytest.approx(50)
    assert gaps.longest_begun_ms(new_pair_made, 1.28) == pytest.approx(200)


def test_a_silence_that_has_not_ended_counts_until_now() -> None:
    assert Gaps([0.0]).longest_begun_ms(0, 1) > 1
