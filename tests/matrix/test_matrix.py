# SPDX-License-Identifier: GPL-2.0-only
"""The rows of docs/reference/failure-scenarios.md, on one pair that heals in between.

One ledger connection lives through all of them but those where the only good copy of its state is
lost: then the image is, with every entry in it. After each row: who served is who should, never
two at a time; every entry was answered rightly; the pair is protected again. After the last the
guest still knows everything that clients were ever told. `make matrix` runs all rows,
`make test` those that are marked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest

from tests.capabilities import ROOT, require
from tests.matrix import hosts
from tests.matrix.carrying_out import carry_out
from tests.matrix.pair import Pair, working
from tests.matrix.rows import ROWS, Moment, Row

_CHOSEN = [row for row in ROWS if row.often or "COLO_MATRIX" in os.environ]
_TABLE = ROOT / "docs" / "reference" / "failure-scenarios.md"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Protected, with a client; ended by the checks of the whole."""
    require("nft")
    with working("colotestm", "etcd", hosts.prepare) as made:
        yield made


@pytest.mark.parametrize("row", _CHOSEN, ids=lambda row: row.name)
def test_row(row: Row, pair: Pair, say: Callable[[str], None]) -> None:
    carry_out(row, pair, say)


def test_the_images_are_equal(pair: Pair) -> None:
    """Behind all of it."""
    pair.verify()


def test_every_row_is_in_the_table() -> None:
    """And the table has no other."""
    lines = [line for line in _TABLE.read_text().splitlines() if line.startswith("| ")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    table = {(c[0], c[1], c[2]) for c in cells if c[1] in {m.value for m in Moment}}
    assert table == {(row.fault, row.moment.value, row.then.value) for row in ROWS}
    assert len(ROWS) >= 40
