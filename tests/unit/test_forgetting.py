# SPDX-License-Identifier: GPL-2.0-only
"""When a VM is forgotten: which overlays may go. The rest is tried on a lab (`tests/lab`)."""

from __future__ import annotations

import pytest

from colo_ebpf.control import forgetting
from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.record import Record

_A, _B = "a/00000000000000aa", "b/00000000000000bb"
_ALONE = record.activate(record.start(record.cold("a"), _A))
_PAIRED = record.pair(_ALONE, _B, 7)
_TAKEN_OVER = record.activate(record.claim(_PAIRED, _B))


@pytest.mark.parametrize(
    ("known", "host", "needed"),
    [
        (None, "a", True),
        (_ALONE, "a", False),
        (_PAIRED, "b", False),
        (_TAKEN_OVER, "b", True),
        (_TAKEN_OVER, "a", False),
        (record.commit(_TAKEN_OVER), "b", False),
    ],
)
def test_overlays_of_a_survivor_that_are_not_merged_are_needed(
    known: Record | None, host: str, needed: bool
) -> None:
    assert forgetting._needs_overlays(known, host) is needed
