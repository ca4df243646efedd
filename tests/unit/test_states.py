# SPDX-License-Identifier: GPL-2.0-only
"""docs/reference/states.md says what the code says; the snapshots it is made from reach all."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from types import FrameType, ModuleType
from typing import Any

from colo_ebpf.control.decision import decide, fencing, operator, pairing, poweroff, relay
from colo_ebpf.control.decision.actions import State
from tests import states

MODULES = (decide, pairing, operator, fencing, poweroff, relay)


def test_the_document_has_every_sentence() -> None:
    text = states.DOCUMENT.read_text()
    made = states.with_part(text, "sentences", states.rows(states.table()))
    assert made == text, "run `python -m tests.states`"


def test_the_document_explains_every_state() -> None:
    explained = states.DOCUMENT.read_text().partition("## Every sentence")[0]
    assert [s.value for s in State if f"| `{s.value}` |" not in explained] == []


def _decides(node: ast.FunctionDef) -> bool:
    return node.returns is not None and "Decision" in ast.unparse(node.returns)


def _returns(module: ModuleType) -> Iterator[tuple[str, int]]:
    """Every `return` of every function that makes a decision."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.FunctionDef) and _decides(node):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return):
                    yield node.name, inner.lineno


def test_the_snapshots_reach_every_decision() -> None:
    reached: dict[str, set[int]] = {str(module.__file__): set() for module in MODULES}

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            reached[frame.f_code.co_filename].add(frame.f_lineno)
        return local

    def trace(frame: FrameType, _event: str, _arg: Any) -> Any:
        return local if frame.f_code.co_filename in reached else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for _ in states.decisions(40_000):
            pass
    finally:
        sys.settrace(before)
    for module in MODULES:
        lines = reached[str(module.__file__)]
        assert [(name, line) for name, line in _returns(module) if line not in lines] == []


def test_the_table_of_moves_is_as_it_would_be_written() -> None:
    text = states.DOCUMENT.read_text()
    assert states.with_part(text, "moves", states.move_rows(states.moves())) == text
