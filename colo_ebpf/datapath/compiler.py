# SPDX-License-Identifier: GPL-2.0-only
"""The process that compiles: bcc, and LLVM with it, are in the daemon's memory at no time.

``python -m colo_ebpf.datapath.compiler FD``: each message on the socket FD is a request, answered
with descriptors of the programs and maps that were asked for, or with the reason there are none.
It ends when the other end is closed; what is loaded lives on by the descriptors.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from colo_ebpf.datapath import headers
from colo_ebpf.errors import ColoError, LoadError

REQUEST_MAX_BYTES = 65536
_LOG_BYTES = 6000


class Request(msgspec.Struct, frozen=True):
    """Compile `source`, load `programs`, hand over them and `maps`."""

    source: str
    include: str
    flags: list[str]
    programs: list[str]
    maps: list[str]
    stages: list[str]  # programs by their number in the map colo_stages
    cache: str


class Answer(msgspec.Struct, frozen=True):
    """With the descriptors of the programs, then of the maps; or with an error."""

    maps: list[str] = []  # those of the wanted ones that the source has
    error: str = ""


def flatten(source: Path, include: Path, seen: set[Path] | None = None) -> str:
    """The source with our own headers inlined.

    bcc rewrites map accesses in the main file only, so that a header with a map in it must
    become part of the main file. #line keeps the compiler's messages right.
    """
    seen = set() if seen is None else seen
    out = [f'#line 1 "{source}"']
    for number, line in enumerate(source.read_text().splitlines(), 1):
        match = re.match(r'#include "(colo_\w+\.h)"', line)
        if not match:
            out.append(line)
            continue
        header = include / match[1]
        if header not in seen:
            seen.add(header)
            out.append(flatten(header, include, seen))
        out.append(f'#line {number + 1} "{source}"')
    return "\n".join(out)


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
    """bcc and the verifier write their log to file descriptor 2 only."""
    with tempfile.TemporaryFile() as log:
        saved = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _log_text(log: Any) -> str:
    log.seek(0)
    text: str = log.read().decode(errors="replace")
    return text.strip()[-_LOG_BYTES:]


def _load(request: Request) -> tuple[Any, list[int]]:
    """bcc's object and the programs' descriptors; LoadError has the log."""
    from bcc import BPF

    tree = headers.find(Path(request.cache))
    if tree:
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
    source = Path(request.source)
    with _captured_stderr() as log:
        try:
            text = flatten(source, Path(request.include)).encode()
            bpf = BPF(text=text, cflags=request.flags)
        except Exception as e:
            raise LoadError(f"{source.name}: does not compile:\n{_log_text(log) or e}") from e
        programs = []
        for name in request.programs:
            try:
                programs.append(int(bpf.load_func(name.encode(), BPF.SCHED_CLS).fd))
            except Exception as e:
                said = _log_text(log)
                raise LoadError(f"{source.name}: the verifier refuses {name}:\n{said}") from e
    return bpf, programs


def _serve(request: Request, end: socket.socket, kept: list[Any]) -> None:
    try:
        bpf, programs = _load(request)
    except ColoError as e:
        end.send(msgspec.json.encode(Answer(error=str(e))))
        return
    kept.append(bpf)  # its maps live as long
    for number, name in enumerate(request.stages):
        if name in request.programs:
            fd = programs[request.programs.index(name)]
            bpf[b"colo_stages"][ctypes.c_int(number)] = ctypes.c_int(fd)
    maps = {}
    for name in request.maps:
        with contextlib.suppress(KeyError):
            maps[name] = int(bpf[name.encode()].map_fd)
    answer = msgspec.json.encode(Answer(maps=list(maps)))
    socket.send_fds(end, [answer], [*programs, *maps.values()])


def main() -> None:
    """Serve the socket that is named by its number."""
    end = socket.socket(fileno=int(sys.argv[1]))
    kept: list[Any] = []
    while data := end.recv(REQUEST_MAX_BYTES):
        _serve(msgspec.json.decode(data, type=Request), end, kept)


if __name__ == "__main__":
    main()
