# SPDX-License-Identifier: GPL-2.0-only
"""The commands in README and docs: those of the lab are run, all others at least parse."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from colo_ebpf.cli.main import parser
from colo_ebpf.lab.lab import Lab
from tests.capabilities import ROOT, require
from tests.lab import clean

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists(page: Path) -> None:
    make = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for command in _commands(page):
        words = shlex.split(command)
        if words[0] == "colo-ebpf":
            parser().parse_args(words[1:])
        else:
            assert words[0] == "make", command
            assert re.search(rf"^  {words[1]} ", make, re.MULTILINE), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"`((?:bpf|colo_ebpf|docs|tests|guest|packaging|scripts)/[\w./-]+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", ["lab.md", "debugging.md"])
def test_a_page_from_top_to_bottom(page: str) -> None:
    require("root", "bpf", "qemu", "guest")
    commands = _commands(ROOT / "docs" / page)
    assert len(commands) > 8
    name = clean(Lab("colotestd")).name
    try:
        for command in commands:
            words = shlex.split(command)
            assert words[:2] == ["colo-ebpf", "lab"]
            words[3:3] = ["--name", name]
            done = subprocess.run(
                [sys.executable, "-m", "colo_ebpf.cli.main", *words[1:]],
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert not Lab(name).exists()
    finally:
        Lab(name).down()
