# SPDX-License-Identifier: GPL-2.0-only
"""Each line of the threat model, and of SECURITY, names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.capabilities import ROOT
from tests.pages import DOCS

MODEL = DOCS / "understand" / "threat-model.md"
_NOTHING = "none: "  # what holds against it, where nothing does


def _rows(section: str) -> list[list[str]]:
    """The cells of the table of a section."""
    text = MODEL.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def _names(cell: str) -> list[str]:
    return re.findall(r"`(tests/[^`]+)`", cell)


def _said(section: str) -> list[tuple[str, list[str]]]:
    """What is tried, and by which tests."""
    return [(" ".join(row[:-1]), _names(row[-1])) for row in _rows(section)]


def _defined(file: Path) -> set[str]:
    """What stands at the top of a source."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("section", ["Not trusted", "Tests"])
def test_each_line_names_tests_that_are_there(section: str) -> None:
    said = _said(section)
    assert len(said) > 5
    for what, tests in said:
        assert tests or _NOTHING in what, what
        for test in tests:
            file, _, name = test.partition("::")
            assert name in _defined(ROOT / file), test


def test_nothing_is_left_open_but_what_the_page_says() -> None:
    without = [what for what, tests in _said("Not trusted") if not tests]
    assert [what.split(" ")[:5] for what in without] == [
        ["somebody", "who", "steals", "an", "arbiter's"]
    ]


def test_what_is_a_vulnerability_is_tried() -> None:
    text = (ROOT / "SECURITY.md").read_text().partition("These are vulnerabilities:\n")[2]
    bullets = re.findall(r"^- (.*?)[;.]$", text, re.MULTILINE | re.DOTALL)
    plain = [" ".join(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", one).split()) for one in bullets]
    assert len(plain) == 4
    tried = [what for what, _ in _said("Tests")]
    assert [one for one in plain if one not in tried] == []
