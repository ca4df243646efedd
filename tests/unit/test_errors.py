# SPDX-License-Identifier: GPL-2.0-only
"""One tree of errors: every one is in `errors`, and its picture there is true."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from colo_ebpf import errors
from colo_ebpf.errors import ColoError
from tests.capabilities import ROOT

_PACKAGE = ROOT / "colo_ebpf"


def _below(kind: type[ColoError], depth: int = 0) -> Iterator[tuple[int, str]]:
    yield depth, kind.__name__
    for one in kind.__subclasses__():
        yield from _below(one, depth + 1)


def _classes(file: Path) -> Iterator[str]:
    """Public classes that are exceptions, by their names or those of their bases."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            names = [node.name, *(ast.unparse(base) for base in node.bases)]
            if any(re.search(r"(Error|Exception)$", name) for name in names):
                yield f"{file.relative_to(_PACKAGE)}: {node.name}"


def test_every_error_is_in_the_tree() -> None:
    files = [file for file in _PACKAGE.rglob("*.py") if file.name != "errors.py"]
    assert [name for file in files for name in _classes(file)] == []


def test_the_picture_is_the_tree() -> None:
    assert errors.__doc__ is not None
    rows = re.findall(r"^    ((?:[│ ]   )*)(?:[├└]── )?(\w+)(?:  |$)", errors.__doc__, re.MULTILINE)
    drawn = {(len(indent) // 4 + 1 if name != "ColoError" else 0, name) for indent, name in rows}
    assert drawn == set(_below(ColoError))
