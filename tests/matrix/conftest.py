# SPDX-License-Identifier: GPL-2.0-only
"""What all rows of the matrix share."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Tell, while the test runs."""

    def tell(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}", end=" ", flush=True)

    return tell
