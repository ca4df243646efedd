# SPDX-License-Identifier: GPL-2.0-only
"""No source file is longer than what a person keeps in mind: split it by concern instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.capabilities import ROOT

LINES_MOST = 500
TABLES = {  # a row for each case: nobody reads one of them from top to bottom
    "tests/bpf/test_golden.py",
}
_KINDS = {".c", ".h", ".py", ".sh"}
_FOLDERS = ("bpf", "colo_ebpf", "guest", "packaging", "scripts", "tests")


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def _sources() -> list[str]:
    files = (one for folder in _FOLDERS for one in (ROOT / folder).rglob("*"))
    return sorted(str(one.relative_to(ROOT)) for one in files if one.suffix in _KINDS)


def test_no_source_is_long() -> None:
    lines = {name: _lines(ROOT / name) for name in _sources()}
    assert len(lines) > 400
    long = {name: n for name, n in lines.items() if n > LINES_MOST}
    assert {name: n for name, n in long.items() if name not in TABLES} == {}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_an_excuse_is_needed(name: str) -> None:
    assert _lines(ROOT / name) > LINES_MOST
