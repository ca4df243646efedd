# SPDX-License-Identifier: GPL-2.0-only
"""The faults that `tests.mutants` plants, and the test that has to find each."""

from __future__ import annotations

from tests.planted import control, link, streams, tables, verdicts
from tests.planted.mutant import Mutant

MUTANTS: list[Mutant] = [
    *verdicts.MUTANTS,
    *streams.MUTANTS,
    *tables.MUTANTS,
    *link.MUTANTS,
    *control.MUTANTS,
]
