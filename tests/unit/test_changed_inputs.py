# SPDX-License-Identifier: GPL-2.0-only
"""What others write or say, changed at random: it is taken, or refused in our own words.

`COLO_CHANGED` sets how many inputs there are, of all kinds together (`make hostile`); `COLO_SEED`
which. An input that fails is printed, and comes again with its seed and number.
"""

from __future__ import annotations

import os
import time

import pytest

from tests.hostile import KINDS, Kind

_INPUTS = int(os.environ.get("COLO_CHANGED", "6000"))
_SEED = int(os.environ.get("COLO_SEED", "53"))
each = pytest.mark.parametrize("name", list(KINDS))


@each
def test_what_is_good_is_taken(name: str) -> None:
    kind = KINDS[name]
    assert any(kind.accepts(one) for one in kind.good)


@each
def test_what_was_changed_is_taken_or_refused(name: str) -> None:
    kind, count, begin_s = KINDS[name], -(-_INPUTS // len(KINDS)), time.monotonic()
    taken = sum(_tried(kind, number) for number in range(count))
    print(f"\n{name}: {count} inputs, {taken} taken, in {time.monotonic() - begin_s:.0f} s")
    assert count // 100 < taken < count, "the changes are too small, or too large"


def _tried(kind: Kind, number: int) -> bool:
    data = kind.made(_SEED, number)
    try:
        return kind.accepts(data)
    except Exception as e:
        e.add_note(f"seed {_SEED}, input {number}: {data[:2000]!r}")
        raise
