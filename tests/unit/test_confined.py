# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's user: what it is let in to, who starts it, and the bounds that systemd is asked for."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import stat
import subprocess
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control import settings
from colo_ebpf.control.host import access
from colo_ebpf.control.host.capabilities import User, user_of
from colo_ebpf.control.qemu import scope
from colo_ebpf.control.qemu.starter import Starter
from colo_ebpf.errors import ConfigError, VmError
from tests.capabilities import require

USER = User(70_901, 70_901, (70_902,))


def _spec(table: str = "") -> settings.VmSpec:
    text = EXAMPLE.replace("[vm]\n", f"[vm]\n{table}\n")
    return settings.vm_spec(parse_config(text, Path("example")), "kvm")


def test_a_user_by_name_or_number() -> None:
    assert user_of("root") is None
    found = user_of("70901")
    assert found is not None and (found.uid, found.gid) == (70_901, 70_901)
    with pytest.raises(ConfigError, match=r"no user colo-nobody: adduser --system"):
        user_of("colo-nobody")


@pytest.mark.parametrize(
    ("mode", "owner", "rights", "wanted"),
    [
        (0o600, (70_901, 0), "rw", True),
        (0o400, (70_901, 0), "rw", False),
        (0o060, (0, 70_902), "rw", True),
        (0o006, (0, 70_902), "rw", False),
        (0o006, (0, 0), "rw", True),
        (0o660, (0, 0), "r", False),
        (0o711, (0, 0), "x", True),
    ],
)
def test_what_a_mode_lets_a_user_do(
    mode: int, owner: tuple[int, int], rights: str, wanted: bool
) -> None:
    found = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, *owner, 0, 0, 0, 0))
    assert access.may(USER, found, rights) is wanted


async def _ended(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    await asyncio.wait_for(gone.wait(), 30)
    loop.remove_reader(pidfd)
    os.close(pidfd)


async def test_a_process_starts_as_that_user_with_the_descriptors_it_was_given(
    tmp_path: Path,
) -> None:
    require("root")
    os.chmod(tmp_path, 0o711)  # what pytest made is root's alone
    starter = Starter.begin(USER)
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        code = "import os, sys; print(*os.getresuid(), *os.getgroups(), os.environ['X']); "
        code += "print(open('/proc/self/status').read()); os.write(20, b'there')"
        argv = ["/usr/bin/python3", "-I", "-c", code]
        pid = await starter.start(argv, {"X": "y"}, {1: out, 2: out, 20: out})
        await _ended(pid)
        said = (tmp_path / "out").read_text()
        assert f"{USER.uid} {USER.uid} {USER.uid} 70902 y\n" in said
        assert "there" in said
        assert "CapPrm:\t0000000000000000" in said and "NoNewPrivs:\t1" in said
        # Read as that user: not even root's own file of mode 0600.
        (tmp_path / "secret").write_text("x")
        os.chmod(tmp_path / "secret", 0o600)
        refused = await starter.closed_ways([(tmp_path / "secret", False)])
        assert [one.split(":")[0] for one in refused] == [str(tmp_path / "secret")]
    finally:
        os.close(out)
        starter.close()


def test_a_process_is_given_a_descriptor_for_each_queue_of_eight_nics(tmp_path: Path) -> None:
    """Two of each, with vhost; both where QEMU is another user and where it is root."""
    require("root")
    # In a process of its own: this one may hold the descriptors of many a test.
    process = get_context("spawn").Process(target=_with_systemds_limit, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def _with_systemds_limit(tmp_path: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, most))
    asyncio.run(_give_descriptors(tmp_path))


async def _give_descriptors(tmp_path: Path) -> None:
    numbers = range(13, 13 + 2 * 8 * 8)
    code = "import os; [os.fstat(n) for n in range(13, 141)]; print(os.getuid())"
    os.chmod(tmp_path, 0o711)
    for user in (USER, None):
        starter = Starter.begin(user)
        out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            fds = {1: out, 2: out, **dict.fromkeys(numbers, out)}
            pid = await starter.start(["/usr/bin/python3", "-I", "-c", code], {}, fds)
            await _ended(pid)
            assert (tmp_path / "out").read_text() == f"{user.uid if user else 0}\n"
        finally:
            os.close(out)
            starter.close()


async def test_what_cannot_be_run_is_told() -> None:
    require("root")
    starter = Starter.begin(USER)
    try:
        with pytest.raises(FileNotFoundError):
            await starter.start(["/nonexistent"], {}, {})
        (pid,) = _children("colo-starter")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(VmError, match=r"process that starts QEMU.*"):
            await starter.start(["true"], {}, {})
    finally:
        starter.close()


def _children(name: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = entry.read_text()
        except OSError:
            continue
        mine = text.rpartition(")")[2].split()[1] == str(os.getpid())
        if mine and f"({name})" in text and " Z " not in text:
            found.append(int(entry.parent.name))
    return found


async def test_root_starts_it_itself() -> None:
    pid = await Starter().start(["sleep", "60"], dict(os.environ), {})
    os.kill(pid, signal.SIGKILL)
    found = await asyncio.to_thread(os.waitpid, pid, 0)
    assert found[0] == pid


def test_a_file_is_opened_to_the_user_and_stays_its_owners(tmp_path: Path) -> None:
    require("root")
    path = tmp_path / "disk"
    access.make(path, None)
    before = path.stat()
    access.grant(path, USER)
    listed = subprocess.run(
        ["getfacl", "-cp", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert f"user:{USER.uid}:rw-" in listed and "other::---" in listed
    assert (path.stat().st_uid, path.stat().st_gid) == (before.st_uid, before.st_gid)
    with pytest.raises(VmError, match="gone"):
        access.grant(tmp_path / "gone", USER)


def test_without_lists_of_access_it_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk"
    access.make(path, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmError, match=r"setfacl is not installed.*chmod g\+rw"):
        access.grant(path, USER)


def test_systemd_is_asked_for_bounds() -> None:
    spec = _spec()
    words = scope.request(spec, 4711, 1 << 30)
    assert words[words.index("PIDs") + 1 :][:3] == ["au", "1", "4711"]
    assert words[words.index("MemoryMax") + 2] == str((2 * 2048 + 1024 + 1024) << 20)
    assert words[words.index("TasksMax") + 2] == "386"
    assert words[words.index("DeviceAllow") + 1 :][:4] == ["a(ss)", "1", "/dev/kvm", "rw"]
    assert words[words.index("DevicePolicy") + 2] == "closed"
    assert "colo-ebpf-vm-web-4711.scope" in words
    without = scope.request(replace(spec, accel="tcg"), 1, 0)
    assert without[without.index("DeviceAllow") + 1 :][:2] == ["a(ss)", "0"]


async def test_a_systemd_that_refuses_is_said_once_and_hinders_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "busctl").write_text("#!/bin/sh\necho Access denied >&2\nexit 1\n")
    (tmp_path / "busctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    one = scope.Scope(_spec(), tmp_path)
    await one.hold(1)
    await one.hold(1)
    assert [r.getMessage() for r in caplog.records] == [
        "QEMU has no bounds of memory, tasks and devices: Access denied"
    ]
    caplog.clear()
    await scope.Scope(_spec(), tmp_path / "none").hold(1)
    assert "systemd does not run here" in caplog.text
