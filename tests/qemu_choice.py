# SPDX-License-Identifier: GPL-2.0-only
"""`make test QEMU=/path`: that program takes the place of the installed qemu-system-x86_64.

Labs, benchmarks and tests alike look for it in PATH.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

NAME = "qemu-system-x86_64"
VARIABLE = "COLO_TEST_QEMU"


class ChoiceError(Exception):
    """What was asked for is no QEMU."""


def version_of(program: str) -> str:
    """Its first line. ChoiceError if it does not say one."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ChoiceError(f"QEMU={program}: {e}: name a {NAME}") from e
    said = (done.stdout.splitlines() or [""])[0]
    if done.returncode or not said.startswith("QEMU emulator version"):
        raise ChoiceError(f"QEMU={program} is none: it says {said or done.stderr.strip()!r}")
    return said


def put_first(program: str, path: str) -> tuple[tempfile.TemporaryDirectory[str], str]:
    """A directory that has to be kept, and the PATH in which it comes first. ChoiceError."""
    found = Path(program).absolute()
    version_of(str(found))
    directory = tempfile.TemporaryDirectory(prefix="colo-qemu-")
    (Path(directory.name) / NAME).symlink_to(found)
    return directory, os.pathsep.join((directory.name, path))
