# SPDX-License-Identifier: GPL-2.0-only
"""Another QEMU takes the place of the installed one, or is refused in words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import qemu_choice
from tests.capabilities import ROOT

_SAYS = "QEMU emulator version 99.1 (of the test)"


def _program(path: Path, line: str) -> str:
    path.write_text(f"#!/bin/sh\necho '{line}'\n")
    path.chmod(0o755)
    return str(path)


def test_it_is_found_first(tmp_path: Path) -> None:
    kept, path = qemu_choice.put_first(_program(tmp_path / "mine", _SAYS), os.environ["PATH"])
    with kept:
        found = shutil.which(qemu_choice.NAME, path=path)
        assert found is not None
        assert qemu_choice.version_of(found) == _SAYS


@pytest.mark.parametrize("line", ["", "qemu-img version 7.2"])
def test_what_is_none_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(qemu_choice.ChoiceError, match="mine is none"):
        qemu_choice.put_first(_program(tmp_path / "mine", line), "")
    with pytest.raises(qemu_choice.ChoiceError, match="No such file"):
        qemu_choice.put_first(str(tmp_path / "nobody"), "")


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_a_run_of_tests_says_which_one_it_uses(tmp_path: Path, workers: tuple[str, ...]) -> None:
    words = ["-m", "pytest", "-p", "no:cacheprovider", *workers, "tests/unit/test_names.py"]
    env = {**os.environ, qemu_choice.VARIABLE: _program(tmp_path / "mine", _SAYS)}
    env |= {"COLO_TESTS_BESIDE": "1"}
    done = subprocess.run(
        [sys.executable, *words, "--collect-only"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert _SAYS in done.stdout, done.stdout + done.stderr


def test_a_run_of_tests_with_none_is_refused() -> None:
    env = {**os.environ, qemu_choice.VARIABLE: "/nonexistent/qemu"}
    words = [sys.executable, "-m", "pytest", "--collect-only", "tests/unit/test_names.py"]
    done = subprocess.run(
        words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "QEMU=/nonexistent/qemu" in done.stderr
