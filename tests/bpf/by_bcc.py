# SPDX-License-Identifier: GPL-2.0-only
"""A source loaded by bcc itself: `python -m tests.bpf.by_bcc NAME` prints what became of it.

A process of its own, for bcc stays in the memory of the one that has loaded it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from colo_ebpf.datapath.bpf import compiler, kernel_headers, loader, syscalls
from colo_ebpf.lab.bed import CACHE

SIZES = loader.Sizes(flows=256, hold_slots=1024, dgram_buckets=64)


def _bpftool(*words: str) -> str:
    return subprocess.run(["bpftool", *words], capture_output=True, text=True, check=True).stdout


def described(programs: dict[str, int]) -> dict[str, Any]:
    """What the kernel says of programs, and of the maps that they use, but for numbers."""
    found: dict[str, Any] = {"programs": {}, "maps": {}, "types": {}}
    numbers: set[int] = set()
    for name, fd in programs.items():
        info = syscalls.program_info(fd)
        row = json.loads(_bpftool("-j", "prog", "show", "id", str(info.number)))
        text = _bpftool("prog", "dump", "xlated", "id", str(info.number), "linum")
        found["programs"][name] = {
            "tag": row["tag"],
            "gpl": row["gpl_compatible"],
            "bytes": row["bytes_xlated"],
            "verified": info.verified,
            "code": re.sub(r"map\[id:\d+\]", "map", text),
        }
        numbers.update(info.maps)
        found["types"][name] = _bpftool("btf", "dump", "id", str(row["btf_id"]))
    for number in numbers:
        row = json.loads(_bpftool("-j", "map", "show", "id", str(number)))
        known = ("type", "flags", "bytes_key", "bytes_value", "max_entries")
        typed = re.search(r"btf_id (\d+)", _bpftool("map", "show", "id", str(number)))
        found["maps"][row["name"]] = {key: row[key] for key in known} | {"typed": bool(typed)}
    return found


def main(name: str) -> None:
    """Its tables are of bcc's making, pinned nowhere."""
    from bcc import BPF

    if tree := kernel_headers.find(loader.trees(CACHE)):
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
    source = loader.read(Path(loader.source_directory() / name), loader.PROGRAMS[name], SIZES)
    bpf = BPF(text=(compiler.PRELUDE + source.text).encode(), cflags=list(source.flags))
    programs = {one: int(bpf.load_func(one.encode(), BPF.SCHED_CLS).fd) for one in source.programs}
    print(json.dumps(described(programs)))


if __name__ == "__main__":
    main(sys.argv[1])
