# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf logs`: the daemon's lines from the journal, QEMU's log, or the guest's console."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from colo_ebpf.errors import ControlError

_OTHER = "\N{REPLACEMENT CHARACTER}"


def of_unit(unit: str, lines: int, follow: bool, as_json: bool) -> int:
    """What journalctl prints; its exit code. Raises ControlError without journalctl."""
    if shutil.which("journalctl") is None:
        raise ControlError(f"journalctl is not installed: where does {unit} write its log?")
    words = ["journalctl", "--no-pager", "--quiet", f"--unit={unit}", f"--lines={lines}"]
    words += ["--follow"] if follow else []
    words += ["--output=json"] if as_json else []
    return subprocess.run(words, check=False).returncode


def of_file(path: Path, lines: int, follow: bool, as_json: bool) -> int:
    """Print its last lines; with `follow` also what is added, until interrupted.

    Raises ControlError if it is not there.
    """
    if not path.is_file():
        raise ControlError(f"{path}: not there: no QEMU was started there since the host booted")
    with subprocess.Popen(
        ["tail", f"--lines={lines}", *(["--follow=name", "--retry"] if follow else []), str(path)],
        stdout=subprocess.PIPE,
    ) as tail:
        assert tail.stdout is not None
        try:
            for line in printable(tail.stdout):
                print(json.dumps(line) if as_json else line, flush=True)
        finally:
            tail.terminate()
    return 0


def printable(lines: Iterable[bytes]) -> Iterator[str]:
    """A guest writes what it likes: of that, nothing that moves a cursor or renames a window."""
    for line in lines:
        text = line.decode(errors="replace").rstrip("\r\n")
        yield "".join(c if c.isprintable() or c == "\t" else _OTHER for c in text)
