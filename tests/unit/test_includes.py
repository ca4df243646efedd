# SPDX-License-Identifier: GPL-2.0-only
"""The C sources: each file includes just what it uses, in no order kept by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.capabilities import ROOT

BPF = ROOT / "bpf"
HEADERS = sorted((BPF / "include").glob("*.h"))
FILES = [*HEADERS, *sorted(BPF.glob("*.c")), *sorted((BPF / "bench").glob("*.c"))]
_DEFINED = (
    r"^#define (colo_\w+|COLO_\w+)",
    r"^(?:struct|enum) (\w+) \{",
    r"^static __always_inline [^=;{}()]*?\b(\w+)\(",
    r'^BPF_\w+\((?:"\w+", [\w ]+, [\w ]+, )?(\w+)',
)
_COLUMNS, _TAB = 100, 8


def _code(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)


def _defined(path: Path) -> set[str]:
    code = _code(path.read_text())
    names = {name for one in _DEFINED for name in re.findall(one, code, re.MULTILINE)}
    for body in re.findall(r"^enum \w+ \{(.*?)\};", code, re.DOTALL | re.MULTILINE):
        names.update(re.findall(r"^\t(\w+)", body, re.MULTILINE))
    return {name for name in names if not name.endswith("_H")}


def _included(text: str) -> list[str]:
    return re.findall(r'^#include "(\w+\.h)"', text, re.MULTILINE)


def test_nothing_is_defined_twice() -> None:
    names = [name for path in HEADERS for name in _defined(path) if name != "COLO_CPUS"]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_includes_what_it_uses(path: Path) -> None:
    where = {name: header.name for header in HEADERS for name in _defined(header)}
    used = set(re.findall(r"\b[A-Za-z_]\w+", _code(path.read_text()))) - _defined(path)
    wanted = {where[name] for name in used if name in where} - {path.name}
    assert set(_included(path.read_text())) == wanted


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_their_order_is_of_no_account(path: Path) -> None:
    found = _included(path.read_text())
    assert found == sorted(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_short_and_fits_on_a_screen(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 500
    long = [n for n, line in enumerate(lines, 1) if len(line.expandtabs(_TAB)) > _COLUMNS]
    assert long == []
