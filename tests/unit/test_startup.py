# SPDX-License-Identifier: GPL-2.0-only
"""How a daemon starts on a host that is slow."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control import startup
from colo_ebpf.control.qemu.starter import Starter
from colo_ebpf.datapath.net.tunnel import Security
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.errors import LoadError
from tests.capabilities import require

_PR_SET_CHILD_SUBREAPER = 36
_COMPILES = """\
import sys
from pathlib import Path
from colo_ebpf.datapath.bpf import compiler, loader
from colo_ebpf.datapath.bpf.loader import Sizes
source = next(one for one in loader.shipped(Sizes(64, 64, 64)) if one.name == "compare.c")
compilation = compiler.Compilation(source, Path(sys.argv[1]))
print(compilation.pid, flush=True)
compilation.image()
"""


def _compiles(pid: int) -> bool:
    return "clang" in Path(f"/proc/{pid}/maps").read_text()


def test_a_compiler_ends_with_its_daemon(tmp_path: Path) -> None:
    """A daemon that is killed while it compiles leaves nothing that takes the next one's CPU."""
    require("bpf")
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    words = [sys.executable, "-c", _COMPILES, str(tmp_path)]
    try:
        with subprocess.Popen(words, stdout=subprocess.PIPE) as daemon:
            assert daemon.stdout is not None
            pid = int(daemon.stdout.readline())
            pidfd = os.pidfd_open(pid)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            while not _compiles(pid):
                assert not poll.poll(10), "it ended before it was looked at"
            daemon.kill()
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "it went on by itself to its end"
        os.close(pidfd)
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def test_systemd_waits_while_programs_are_compiled_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> DataPlane:
        raise LoadError("as far as this test goes")

    monkeypatch.setattr(DataPlane, "open", fails)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        starter = cast(Starter, SimpleNamespace(user=None))
        with pytest.raises(LoadError):
            startup._load(parse_config(EXAMPLE, tmp_path), starter, Security.NONE)
        assert b"EXTEND_TIMEOUT_USEC=600000000" in systemd.recv(1000)
