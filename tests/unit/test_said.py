# SPDX-License-Identifier: GPL-2.0-only
"""The example of a status that other tests use has just the keys that a daemon says."""

from __future__ import annotations

import ast
import inspect

import pytest

from colo_ebpf.control.admin import status
from tests import said

_MODULE = ast.parse(inspect.getsource(status))


def _keys(function: str) -> set[str]:
    """Of the dictionary that the function returns."""
    (found,) = (
        one
        for one in ast.walk(_MODULE)
        if isinstance(one, ast.FunctionDef) and one.name == function and one in _MODULE.body
    )
    dicts = [
        one.value
        for one in ast.walk(found)
        if isinstance(one, ast.Return) and isinstance(one.value, ast.Dict)
    ]
    keys = [key for one in dicts for key in one.keys if isinstance(key, ast.Constant)]
    return {str(key.value) for key in keys}


@pytest.mark.parametrize(
    "function, part",
    [("status", ""), ("_checkpoints", "checkpoints"), ("_vm", "vm_process"), ("_guest", "guest")],
)
def test_the_example_has_the_keys_of_a_status(function: str, part: str) -> None:
    example = said.status()[part] if part else said.status()
    assert set(example) == _keys(function)


def test_the_example_has_the_keys_of_what_is_said_of_the_peer() -> None:
    assert set(said.status()["peer"]) == _keys("_peer")
