# SPDX-License-Identifier: GPL-2.0-only
"""`make mutants`: plant one fault at a time in the sources; a named test must find each.

A mutant that survives is a hole in the tests. Add one to `tests.planted` for every bug that is
found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.capabilities import ROOT
from tests.planted import MUTANTS, Mutant

_TIMEOUT_S = 300
_NOT_COPIED = shutil.ignore_patterns("__pycache__")


def _planted(mutant: Mutant, directory: Path) -> tuple[Path, Path]:
    """A copy with the fault in it: where tests are run, and where the C sources are."""
    where = directory if mutant.python else ROOT
    sources = directory / "bpf"
    shutil.copytree(ROOT / "bpf", sources)
    if mutant.python:
        for name in ("colo_ebpf", "tests"):
            shutil.copytree(ROOT / name, directory / name, ignore=_NOT_COPIED)
        shutil.copy(ROOT / "pyproject.toml", directory)
    path = directory / mutant.path
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"mutant {mutant.name!r}: its place is not in {mutant.file}, or not once")
    path.write_text(text.replace(mutant.old, mutant.new))
    return where, sources


def _run(killer: str, where: Path, sources: Path) -> int:
    """Exit code of the test, run from there on these C sources."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:warnings", killer]
    environment = {
        **os.environ,
        "COLO_EBPF_BPF": str(sources),
        "COLO_MODEL_QUICK": "1",
        "COLO_TESTS_BESIDE": "1",
    }
    done = subprocess.run(
        command,
        cwd=where,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    return done.returncode


def main(words: list[str]) -> int:
    """All of them, or those whose name has one of the words; 1 if any survives."""
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    for killer in sorted({mutant.killer for mutant in chosen}):
        if _run(killer, ROOT, ROOT / "bpf"):
            raise SystemExit(f"{killer} fails without any mutant")
    survivors = 0
    for number, mutant in enumerate(chosen, 1):
        with tempfile.TemporaryDirectory(prefix="colo-mutant") as directory:
            killed = _run(mutant.killer, *_planted(mutant, Path(directory))) == 1
        survivors += not killed
        word = "killed" if killed else "SURVIVES"
        print(f"[{number}/{len(chosen)}] {word}: {mutant.name} ({mutant.killer})", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
