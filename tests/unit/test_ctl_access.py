# SPDX-License-Identifier: GPL-2.0-only
"""Who may ask the daemon what: root everything, a group to look, others nothing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from colo_ebpf.control.admin import control_socket, server
from colo_ebpf.control.admin.server import LOOKS, ControlServer
from colo_ebpf.control.daemon import Daemon
from tests.capabilities import require

_NOBODY, _GROUP = 65_534, ("games", 60)  # Debian's, of every system
_ASK = """
import socket, sys
one = socket.socket(socket.AF_UNIX)
one.settimeout(20)
try:
    one.connect(sys.argv[1])
    for line in sys.argv[2:]:
        one.sendall(line.encode() + b"\\n")
        print(one.makefile().readline(), end="")
except OSError as e:
    print(type(e).__name__)
"""


@pytest.fixture
async def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """A daemon's socket, in a directory that everybody can enter."""
    require("root")
    for part in (tmp_path, *tmp_path.parents[:3]):
        part.chmod(part.stat().st_mode | 0o011)
    monkeypatch.setattr(server, "GROUP", _GROUP[0])
    daemon = SimpleNamespace(status=lambda: {"state": "fine", "pad": "x" * 4000}, core=None)
    one = ControlServer(cast(Daemon, daemon), tmp_path / "ctl.sock")
    await one.start()
    yield tmp_path / "ctl.sock"
    await one.stop()


async def _as(user: int, group: int, path: Path, *commands: str) -> list[str]:
    lines = [json.dumps({"command": one, "generation": 1}) for one in commands]
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--reuid", str(user), "--regid", str(_NOBODY), "--groups", str(group)),
        *("/usr/bin/python3", "-I", "-c", _ASK, str(path), *lines),
        stdout=subprocess.PIPE,
    )
    said, _ = await process.communicate()
    return said.decode().splitlines()


async def test_others_are_not_even_let_in(path: Path) -> None:
    assert await _as(_NOBODY, _NOBODY, path, "status") == ["PermissionError"]


async def test_the_group_looks_and_does_nothing(path: Path) -> None:
    acts = ("checkpoint", "switchover", "failover", "start", "pause", "resume", "lend", "take-back")
    answers = await _as(_NOBODY, _GROUP[1], path, "status", *acts, "nonsense", "status")
    said = [json.loads(line) for line in answers]
    assert said[0]["ok"]["state"] == said[-1]["ok"]["state"] == "fine"
    assert len(said) == len(acts) + 3
    assert all("only root may" in one["error"] for one in said[1:-1])


async def test_every_command_is_roots_unless_it_only_looks(path: Path) -> None:
    found = await asyncio.to_thread(_known, path)
    assert set(LOOKS) < found
    assert not any(word in one for one in LOOKS for word in ("switch", "fail", "pause", "lend"))


def _known(path: Path) -> set[str]:
    """As the daemon names them."""
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(path))
        one.sendall(b"x\n")
        text = json.loads(one.makefile().readline())["error"]
    return set(text.partition("one of ")[2].rstrip("}").split(", "))


async def test_those_who_look_and_never_read_keep_nobody_else_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LOOKER_S", 600)  # however slow this machine is
    program = (
        "import socket, sys, time\n"
        "held = [socket.socket(socket.AF_UNIX) for _ in range(40)]\n"
        "for one in held:\n"
        "    one.connect(sys.argv[1]); one.setblocking(False)\n"
        "    try:\n"
        '        while True: one.send(b\'{"command": "status"}\\n\' * 64)\n'
        "    except OSError: pass\n"
        "print('held', flush=True); time.sleep(60)\n"
    )
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--reuid", str(_NOBODY), "--regid", str(_NOBODY)),
        *("--groups", str(_GROUP[1]), "/usr/bin/python3", "-I", "-c", program, str(path)),
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout
        assert await process.stdout.readline() == b"held\n"
        (line,) = await _as(_NOBODY, _GROUP[1], path, "status")
        refused = line in ("ConnectionResetError", "BrokenPipeError")
        assert refused or "look at this daemon already" in line
        answer: Any = await asyncio.to_thread(control_socket.ask, path, "status")
        assert answer["state"] == "fine"
    finally:
        process.kill()
        await process.wait()


async def test_without_such_a_group_it_is_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "GROUP", "no-such-group")
    daemon = SimpleNamespace(status=dict, core=None)
    one = ControlServer(cast(Daemon, daemon), tmp_path / "ctl.sock")
    await one.start()
    assert os.stat(tmp_path / "ctl.sock").st_mode & 0o777 == 0o600
    await one.stop()
