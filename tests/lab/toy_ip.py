# SPDX-License-Identifier: GPL-2.0-only
"""`ip` on a kernel without IPsec, as if it had it: states and policies are lines of a file, and
seal nothing. Everything else is the real one's.

A file for each network namespace, in the directory that TOY_IP names. What it prints has the form
of iproute2's.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

REAL = "/usr/sbin/ip"
_STATE = re.compile(r"xfrm state add src (\S+) dst (\S+) proto esp spi (\S+) reqid (\d+) .*")
_DROP = re.compile(r"xfrm state delete src (\S+) dst (\S+) proto esp spi (\S+)")
_POLICY = re.compile(r"xfrm policy (update|delete) (src \S+ dst \S+ proto \d+.*?) dir (in|out)")


def _file() -> Path:
    return Path(os.environ["TOY_IP"]) / str(os.stat("/proc/thread-self/ns/net").st_ino)


def _batch(lines: set[str], command: str) -> int:
    if found := _STATE.fullmatch(command):
        source, destination, spi, request_id = found.groups()
        line = f"state src {source} dst {destination} {int(spi, 16):#010x} {request_id}"
        if line in lines:
            print("RTNETLINK answers: File exists", file=sys.stderr)
            return 2
        lines.add(line)
    elif found := _DROP.fullmatch(command):
        head = "state src {} dst {} {:#010x} ".format(*found.groups()[:2], int(found[3], 16))
        lines -= {one for one in lines if one.startswith(head)}
    elif found := _POLICY.match(command):
        line = f"policy {found[2]} \n\tdir {found[3]} priority 1000 ptype main "
        (lines.add if found[1] == "update" else lines.discard)(line)
    else:
        print(f"not known here: {command}", file=sys.stderr)
        return 1
    return 0


def _print(kind: str, lines: set[str]) -> None:
    for line in sorted(lines):
        if not line.startswith(kind):
            continue
        text = line.removeprefix(f"{kind} ")
        if kind == "state":
            ends, spi, request_id = text.rsplit(" ", 2)
            text = f"{ends}\n\tproto esp spi {spi} reqid {request_id} mode transport"
        print(text)


def main(words: list[str]) -> int:
    """As `ip` would end."""
    words = [one for one in words if one != "-force"]
    if words[:1] != ["-batch"] and words[:1] != ["xfrm"]:
        os.execv(REAL, [REAL, *words])
    path = _file()
    lines = set(path.read_text().split("\0")) - {""} if path.exists() else set()
    if words[0] == "xfrm":
        if words[2] == "flush":
            lines = {one for one in lines if not one.startswith(words[1])}
            path.write_text("\0".join(lines))
        else:
            _print(words[1], lines)
        return 0
    code = max((_batch(lines, one.strip()) for one in sys.stdin), default=0)
    path.write_text("\0".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
