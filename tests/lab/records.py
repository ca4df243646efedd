# SPDX-License-Identifier: GPL-2.0-only
"""What guest/writer.c leaves on its file system, and how to look at it from outside."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

_BYTES, _PER_FILE, _MAGIC, _MASK = 512, 64, 0x44524F4345524F4C, (1 << 64) - 1
_BASIS, _PRIME = 1469598103934665603, 1099511628211
_STEP, _ADD = 6364136223846793005, 1442695040888963407
_TOTALS = re.compile(r"Free (?:blocks|inodes) count wrong \(\d+, counted=\d+\)\.\nFix\? yes\n")
_WORDS = (_BYTES - 24) // 8


def record(number: int) -> bytes:
    """The whole of it."""
    state, words = number, []
    for _ in range(_WORDS):
        state = (state * _STEP + _ADD) & _MASK
        words.append(state)
    text = struct.pack(f"<{_WORDS}Q", *words)
    total = _BASIS
    for byte in struct.pack("<Q", number) + text:
        total = ((total ^ byte) * _PRIME) & _MASK
    return struct.pack("<3Q", _MAGIC, number, total) + text


def read(directory: Path) -> tuple[int, list[str]]:
    """(how many there are, from 1 on; complaints)."""
    count, wrong = 0, []
    files = sorted(p for p in directory.iterdir() if p.is_file())
    for place, path in enumerate(files):
        data = path.read_bytes()
        if path.name != f"{place:08}" or len(data) % _BYTES or len(data) > _PER_FILE * _BYTES:
            wrong.append(f"{path.name}, {len(data)} bytes, is the file number {place}")
        if place + 1 < len(files) and len(data) != _PER_FILE * _BYTES:
            wrong.append(f"{path.name} is not full, and there are more")
        for at in range(0, len(data), _BYTES):
            count += 1
            if data[at : at + _BYTES] != record(count):
                wrong.append(f"record {count} is not what was written")
    return count, wrong


def make(image: Path, size_bytes: int) -> None:
    """An empty ext4 file system."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    _run("mke2fs", "-q", "-t", "ext4", "-O", "metadata_csum", str(image))


def examine(image: Path, work: Path) -> tuple[int, list[str]]:
    """As `read`, of a copy of an image whose guest died. What a mount makes good is no complaint:
    it replays the journal and counts what is free, for the totals in the superblock are written
    only now and then. Whatever else e2fsck would mend is one."""
    copy, tree = work / "copy.raw", work / "tree"
    shutil.copyfile(image, copy)
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    said = _run("e2fsck", "-fy", str(copy), good=(0, 1))
    wrong = [line for line in _TOTALS.sub("", said).splitlines() if not _innocent(line, copy)]
    wrong += [] if "recovering journal" in said else ["no journal was replayed: not in use?"]
    _run("e2fsck", "-fn", str(copy))
    _run("debugfs", "-R", f"rdump / {tree}", str(copy))
    count, more = read(tree)
    return count, wrong + more


def _innocent(line: str, image: Path) -> bool:
    starts = ("e2fsck 1.", "Pass ", f"{image}: recovering journal")
    ends = (" blocks", "FILE SYSTEM WAS MODIFIED *****")
    return not line.strip() or line.startswith(starts) or line.endswith(ends)


def _run(*words: str, good: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
    )
    assert done.returncode in good, f"{' '.join(words)}: {done.returncode}\n{done.stdout}"
    return done.stdout
