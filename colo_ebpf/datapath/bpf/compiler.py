# SPDX-License-Identifier: GPL-2.0-only
"""From a source to its image: bcc, and LLVM with it, are in the daemon's memory at no time.

``python -m colo_ebpf.datapath.bpf.compiler``: takes a request on its standard input, writes an
answer on its standard output and ends. Nothing is loaded there.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from colo_ebpf.datapath.bpf import kernel_headers
from colo_ebpf.datapath.bpf.image import Image, Source, decode, encode
from colo_ebpf.datapath.bpf.recorder import Record, record_calls
from colo_ebpf.errors import ColoError, LoadError

_LOG_BYTES = 6000
_PR_SET_PDEATHSIG = 1
_PINNED = re.compile(r'COLO_PIN "/(\w+)"')
# The pins are up to who loads the image: a map that bcc pinned would be one VM's.
PRELUDE = """\
#undef BPF_TABLE_PINNED
#define COLO_TABLE(kind, key, leaf, name, entries, pin, flags, ...) \\
	BPF_F_TABLE(kind, key, leaf, name, entries, flags)
#define BPF_TABLE_PINNED(...) COLO_TABLE(__VA_ARGS__, 0, 0)
"""


class Request(msgspec.Struct, frozen=True):
    """Compile `text`, which is the source `name`, and write down its `programs`."""

    name: str
    text: str
    flags: tuple[str, ...]
    programs: tuple[str, ...]
    headers: str  # where a tree of kernel headers may be made


class Answer(msgspec.Struct, frozen=True):
    """An image (`encode`), or the reason there is none."""

    image: bytes = b""
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


def _drop(source: Source, image: Image) -> None:
    """Not kept."""


@functools.cache
def version() -> str:
    """Of the bcc that is installed, without loading it; empty if there is none."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        found = importlib.util.find_spec("bcc")
        if found and found.origin:
            text = Path(found.origin).with_name("version.py").read_text()
            match = re.search(r"__version__ *= *['\"]([\w.+~-]+)['\"]", text)
            return match[1] if match else ""
    return ""


class Compilation:
    """One source on its way, in a process of its own."""

    def __init__(self, source: Source, trees: Path) -> None:
        self._source = source
        request = Request(source.name, source.text, source.flags, source.programs, str(trees))
        self._request = msgspec.msgpack.encode(request)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "colo_ebpf.datapath.bpf.compiler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def image(self) -> Image:
        """Waits for it; LoadError carries the compiler's log."""
        try:
            said, _ = self._process.communicate(self._request)
        finally:
            self._process.kill()
            self._process.wait()
        try:
            answer = msgspec.msgpack.decode(said, type=Answer)
        except msgspec.MsgspecError:
            code = self._process.returncode
            raise LoadError(f"{self._source.name}: the compiler ended with {code}") from None
        if answer.error:
            raise LoadError(answer.error)
        return decode(answer.image)


def compile_all(
    sources: Sequence[Source], trees: Path, keep: Callable[[Source, Image], object] = _drop
) -> list[Image]:
    """All at once, each in a process. `trees`: where a tree of kernel headers may be made. `keep`
    has each as soon as it is made, in a thread: on a slow host the others take minutes more.

    Raises LoadError with the compiler's log."""
    kernel_headers.find(trees)  # made once, before each of them would
    started = [Compilation(source, trees) for source in sources]

    def made(source: Source, compilation: Compilation) -> Image:
        image = compilation.image()
        keep(source, image)
        return image

    with ThreadPoolExecutor(len(started)) as waiting:
        return list(waiting.map(made, sources, started))


# -- the process -------------------------------------------------------------------------


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
    """bcc writes its log to file descriptor 2 only."""
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


def _compile(request: Request) -> Image:
    from bcc import BPF

    tree = kernel_headers.find(Path(request.headers))
    if tree:
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
    calls = record_calls()
    with _captured_stderr() as log:
        try:
            bpf = BPF(text=(PRELUDE + request.text).encode(), cflags=list(request.flags))
            for name in request.programs:
                bpf.load_func(name.encode(), BPF.SCHED_CLS)
        except Exception as e:
            raise LoadError(f"{request.name}: does not compile:\n{_log_text(log) or e}") from e
    return _image(request, calls)


def _image(request: Request, calls: Record) -> Image:
    pinned = set(_PINNED.findall(request.text))
    return calls.image(request.name, list(request.programs), pinned)


def main() -> None:
    """One request, one answer. Nobody waits for it once the daemon is gone: the next one of a host
    that is slow would find these processes beside its own, and be slower."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Request)
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints
    try:
        done = Answer(image=encode(_compile(request)))
    except ColoError as e:
        done = Answer(error=str(e))
    with open(answer, "wb") as out:
        out.write(msgspec.msgpack.encode(done))


if __name__ == "__main__":
    main()
