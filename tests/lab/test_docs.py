# SPDX-License-Identifier: GPL-2.0-only
"""The commands of the pages that a reader follows in a lab are run, in their order."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from colo_ebpf.lab.lab import Lab
from tests.capabilities import ROOT, require
from tests.lab import clean
from tests.pages import commands_of


@pytest.mark.parametrize("page", ["start/first-vm.md", "start/lab.md", "operate/debugging.md"])
def test_a_page_from_top_to_bottom(page: str) -> None:
    require("root", "bpf", "qemu", "guest")
    commands = [one for one in commands_of(ROOT / "docs" / page) if not one.startswith("make ")]
    assert len(commands) > 5
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
