# SPDX-License-Identifier: GPL-2.0-only
"""The contract of pyproject.toml on who may import whom finds what breaks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.capabilities import ROOT

_DECIDES = "what decides knows no I/O BROKEN"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contract, to be spoilt."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "colo_ebpf", tmp_path / "colo_ebpf", ignore=leave)
    return tmp_path


def _lint(copy: Path) -> tuple[int, str]:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join(done.stdout.split())


def test_the_contract_is_kept(copy: Path) -> None:
    code, said = _lint(copy)
    assert code == 0, said


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("decision/decide", "import os", _DECIDES),
        ("decision/record", "from colo_ebpf.control.state import atomic", _DECIDES),
        ("checkpoint/pace", "import asyncio", _DECIDES),
        ("core/checkpoints", "from colo_ebpf.control.qemu import cmdline", _DECIDES),
        ("peer/state", "import socket", _DECIDES),
        ("admin/status", "from colo_ebpf.control.daemon import Daemon", "control plane BROKEN"),
        ("settings", "import pyroute2", "nbd is the storage's BROKEN"),
    ],
)
def test_what_breaks_it_is_found(copy: Path, module: str, line: str, broken: str) -> None:
    with (copy / "colo_ebpf" / "control" / f"{module}.py").open("a") as file:
        file.write(f"\n{line}\n")
    code, said = _lint(copy)
    assert code == 1
    assert broken in said
