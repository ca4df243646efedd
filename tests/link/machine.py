# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernel with this project's Python in it, for as long as the scenarios take.

It has no disk and no network: what runs in it is in its initramfs, what it finds out comes by its
serial console.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from colo_ebpf.datapath.bpf import image, loader
from colo_ebpf.lab.bed import CACHE
from tests.capabilities import GUEST, ROOT
from tests.link import programs
from tests.link.inside import MARK

SYSTEM = GUEST / "link"
_PARTS = ("colo_ebpf", "tests/__init__.py", "tests/link")
_LIMIT_S = 600


def _archive(directory: Path) -> None:
    """What is to be run, below /trial."""
    for part in _PARTS:
        source, there = ROOT / part, directory / "trial" / part
        there.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, there, ignore=shutil.ignore_patterns("__pycache__", "*.c"))
        else:
            shutil.copyfile(source, there)
    (directory / "trial" / "main.py").write_text("from tests.link import inside\ninside.main()\n")


def _images(directory: Path) -> None:
    """The data plane, as it is compiled here."""
    directory.mkdir()
    for mtu in programs.MTUS:
        sources = loader.shipped(programs.sizes(mtu))
        for source, made in zip(sources, loader.images(sources, CACHE), strict=True):
            (directory / f"{mtu}-{source.name}").write_bytes(image.encode(made))


def _initramfs(directory: Path) -> Path:
    """Two archives, one behind the other."""
    found = b"".join(
        f"{path.relative_to(directory)}\n".encode() for path in sorted(directory.rglob("*"))
    )
    packed = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"],
        cwd=directory,
        input=found,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    whole = directory / "initramfs"
    with whole.open("wb") as file:
        file.write((SYSTEM / "system.cpio").read_bytes())
        file.write(packed)
    return whole


def _lines(directory: Path) -> Iterator[str]:
    """Of its console."""
    argv = [
        *("qemu-system-x86_64", "-M", "pc", "-accel", "tcg", "-cpu", "max", "-smp", "2"),
        *("-m", "512", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(SYSTEM / "vmlinuz"), "-initrd", str(_initramfs(directory))),
        *("-append", "console=ttyS0 rdinit=/init panic=-1 quiet no_timer_check mitigations=off"),
    ]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT_S, check=False
    )
    yield from (done.stdout + done.stderr).decode(errors="replace").splitlines()


def run(directory: Path) -> tuple[dict[str, str], str]:
    """What each scenario says of itself ("" if all was right), and all that was printed."""
    _archive(directory)
    _images(directory / "trial" / programs.IMAGES.name)
    found, printed = {}, []
    for line in _lines(directory):
        printed.append(line)
        if line.startswith(MARK):
            one = json.loads(line.removeprefix(MARK))
            found[one["name"]] = one["wrong"]
    return found, "\n".join(printed)
