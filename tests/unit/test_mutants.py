# SPDX-License-Identifier: GPL-2.0-only
"""Every planted fault still has its place in the sources (`make mutants` runs them)."""

from __future__ import annotations

import pytest

from tests.capabilities import ROOT
from tests.planted import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_place_is_there_once(mutant: Mutant) -> None:
    text = (ROOT / mutant.path).read_text()
    assert text.count(mutant.old) == 1
    assert (ROOT / mutant.killer.partition("::")[0]).exists()
    assert mutant.old != mutant.new
