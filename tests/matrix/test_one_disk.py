# SPDX-License-Identifier: GPL-2.0-only
"""Rows of the matrix for a pair whose hosts have one disk, where a winner turns the loser off.

The disk is told nothing of (`tests.matrix.hosts`): rows that break disks and files are not in it.
`make matrix` runs all of these, `make test` some.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from colo_ebpf.lab.guest import Wanted, choose
from tests.capabilities import require
from tests.matrix.carrying_out import carry_out
from tests.matrix.pair import Pair, working
from tests.matrix.rows import ROWS, Row

_OFTEN = (
    "primary's host killed, idle",
    "primary's QEMU killed, under load",
    "secondary's host killed, under load",
    "link and management cut, under load",
)
_ALSO = (
    "primary's host stopped, under load",
    "primary's QEMU stopped, under load",
    "primary's daemon stopped, under load",
    "secondary's QEMU killed, under load",
    "secondary's host stopped, under load",
    "secondary's daemon stopped, idle",
    "link cut, under load",
    "link and arbiter cut, under load",
    "link and management and arbiter cut, under load",
    "secondary's host killed, inside a checkpoint",
    "primary's host killed, inside a checkpoint",
    "primary's QEMU killed, inside a checkpoint",
    "primary's daemon killed, inside a checkpoint",
    "secondary's daemon killed, inside a checkpoint",
    "secondary's host killed, during resync",
    "link cut, during resync",
    "primary's QEMU killed while etcd is stopped, under load",
)
_CHOSEN = _OFTEN + _ALSO if "COLO_MATRIX" in os.environ else _OFTEN


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Protected, with a client; ended by the checks of the whole."""
    require("root", "bpf", "qemu", "guest")
    with working("colotone", "etcd", guest=choose(Wanted(shared_disk=True))) as made:
        yield made


def _named(name: str) -> Row:
    (row,) = [row for row in ROWS if row.name == name]
    return row


@pytest.mark.parametrize("row", [_named(name) for name in _CHOSEN], ids=lambda row: row.name)
def test_row(row: Row, pair: Pair, say: Callable[[str], None]) -> None:
    carry_out(row, pair, say)
