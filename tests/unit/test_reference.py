# SPDX-License-Identifier: GPL-2.0-only
"""The reference of keys and commands is in step with the schema and the parser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import reference


@pytest.mark.parametrize("page", [reference.CONFIGURATION, reference.COMMANDS], ids=str)
def test_the_page_is_as_it_would_be_written(page: Path) -> None:
    assert page.read_text() == reference.made()[page], "run `python -m tests.reference`"


def test_every_key_has_its_kind_default_and_effect() -> None:
    lines = reference.configuration_lines()
    assert "| `mtu` | integer, 576 to 9000 | `1500` |" in "\n".join(lines)
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| `")]
    assert rows
    assert all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)


def test_every_command_says_what_it_is_for() -> None:
    said = {name: text for name, text, _ in reference._leaves(reference.parser())}
    assert "colo-ebpf arbiter show" in said
    assert [name for name, text in said.items() if not text] == []


def test_every_argument_says_what_it_is() -> None:
    silent = [line for line in reference.commands_lines() if line.endswith("|  |")]
    assert silent == []
