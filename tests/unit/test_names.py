# SPDX-License-Identifier: GPL-2.0-only
"""Tests run side by side: no two files make a lab of one name, and what one leaves is found."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

_TESTS = Path(__file__).parents[1]
_MAKERS = ("Lab", "UnitLab", "protected", "working")


def _labs(tree: ast.Module) -> Iterator[str]:
    """Names that are written out, or held by NAME."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            first = node.args[0] if node.args else None
            if called in _MAKERS and isinstance(first, ast.Constant):
                yield str(first.value)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [one.id for one in node.targets if isinstance(one, ast.Name)]
            if names == ["NAME"]:
                yield str(node.value.value)


def test_each_lab_has_a_name_of_its_own() -> None:
    users: dict[str, set[str]] = defaultdict(set)
    for path in _TESTS.rglob("test_*.py"):
        for name in _labs(ast.parse(path.read_text())):
            users[name].add(path.name)
    users = {name: files for name, files in users.items() if name.startswith("colo")}
    assert len(users) > 20
    assert {name: files for name, files in users.items() if len(files) > 1} == {}
    assert [name for name in users if not name.startswith("colot")] == [], "see tests/conftest.py"
