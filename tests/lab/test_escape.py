# SPDX-License-Identifier: GPL-2.0-only
"""Somebody has broken out of a QEMU: a process with all that it has tries what hurts the host."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.datapath.bpf.loader import pin_directory
from colo_ebpf.lab import processes, topology
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from tests.capabilities import require
from tests.lab import clean

_PTRACE_ATTACH = 16
_BPF, _BPF_OBJ_GET = 321, 7
_NO_NEW_PRIVS = 38


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Protected."""
    require("root", "bpf", "qemu", "guest")
    one = clean(Lab("colotescape"))
    try:
        one.up(choose(Wanted()))
        yield one
    finally:
        one.down()


def _vm(lab: Lab, host: str = "a") -> int:
    (pid,) = processes.pids_of(lab.places[host].namespace, "vm")
    return pid


def _status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


def _escaped(lab: Lab, code: str) -> str:
    """What a process with the ids and the groups of that VM's QEMU prints."""
    pid = _vm(lab)
    found = _status(pid)

    def become() -> None:
        os.setgroups([int(one) for one in found["Groups"]])
        os.setresgid(*(int(found["Gid"][0]),) * 3)
        os.setresuid(*(int(found["Uid"][0]),) * 3)
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)

    program = f"import ctypes, os, signal, socket\ntry:\n    {code}\n    print('done')\n" + (
        "except OSError as e:\n    print(type(e).__name__)"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        preexec_fn=become,
        check=True,
    )
    return done.stdout.strip()


def _daemon(lab: Lab) -> int:
    (pid,) = processes.pids_of(lab.places["a"].namespace, "daemon")
    return pid


def test_qemu_has_a_user_of_its_own_and_nothing_else(lab: Lab) -> None:
    users = set()
    for host, place in lab.places.items():
        found = _status(_vm(lab, host))
        assert set(found["Uid"]) == {str(place.user)}
        assert set(found["Gid"]) == {str(place.user)}
        for kind in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
            assert int(found[kind][0], 16) == 0, kind
        assert found["NoNewPrivs"] == ["1"]
        assert found["Seccomp"] == ["2"], "a filter"
        users.add(found["Uid"][0])
    assert len(users) == len(lab.places)


def test_who_starts_it_is_that_user_for_good(lab: Lab) -> None:
    place = lab.places["a"]
    starters = [
        pid
        for pid in processes.in_namespace(place.namespace)
        if Path(f"/proc/{pid}/comm").read_text().strip() == "colo-starter"
    ]
    (pid,) = starters
    found = _status(pid)
    assert set(found["Uid"]) == {str(place.user)}
    assert int(found["CapPrm"][0], 16) == 0 and found["NoNewPrivs"] == ["1"]


def _open(path: Path, mode: str) -> str:
    return f"open({str(path)!r}, {mode!r})"


def _files(lab: Lab) -> list[tuple[str, str]]:
    a, b = lab.places["a"], lab.places["b"]
    pins = pin_directory(a.bpffs, a.name)
    record = topology.arbiter_directory(lab.name)
    return [
        ("the key", _open(topology.key_file(lab.name), "rb")),
        ("the record", f"os.listdir({str(record)!r})"),
        ("a new record", _open(record / "99", "wb")),
        ("the daemon's lock", _open(a.run_dir / "daemon.lock", "r+b")),
        ("its pid file", _open(a.run_dir / "qemu.pid", "r+b")),
        ("another socket's place", f"os.unlink({str(a.run_dir / 'ctl.sock')!r})"),
        ("the state", _open(a.directory / "state" / "generation", "rb")),
        ("the configuration", _open(a.config, "r+b")),
        ("the daemon's log", _open(a.log, "r+b")),
        ("another VM's image", _open(b.disk, "rb")),
        ("another VM's console log", _open(b.run_dir / "serial.log", "rb")),
        ("pinned maps", f"os.listdir({str(pins)!r})"),
        ("a new pin", f"os.mkdir({str(pins / 'x')!r})"),
        ("the daemon's memory", _open(Path(f"/proc/{_daemon(lab)}/mem"), "rb")),
    ]


def _acts(lab: Lab) -> list[tuple[str, str]]:
    a, b = lab.places["a"], lab.places["b"]
    connect = "socket.socket(socket.AF_UNIX).connect({!r})"
    raising = "r = ctypes.CDLL(None, use_errno=True); {}"
    attach = f"x = r.ptrace({_PTRACE_ATTACH}, {{}}, 0, 0)"
    tell = "\n    if x < 0: raise OSError(ctypes.get_errno(), 'no')"
    pin = str(pin_directory(a.bpffs, a.name) / "colo_turn").encode() + b"\0"
    get = (
        f"p = ctypes.create_string_buffer({pin!r}); "
        "q = ctypes.create_string_buffer(ctypes.addressof(p).to_bytes(8, 'little') + bytes(8)); "
        f"x = r.syscall({_BPF}, {_BPF_OBJ_GET}, q, 16)"
    )
    return [
        ("the control socket", connect.format(str(a.run_dir / "ctl.sock"))),
        ("another VM's monitor", connect.format(str(b.run_dir / "qmp.sock"))),
        ("another VM's console", connect.format(str(b.run_dir / "console.sock"))),
        ("the daemon killed", f"os.kill({_daemon(lab)}, signal.SIGKILL)"),
        ("another VM killed", f"os.kill({_vm(lab, 'b')}, signal.SIGKILL)"),
        ("the daemon traced", raising.format(attach.format(_daemon(lab))) + tell),
        ("another VM traced", raising.format(attach.format(_vm(lab, "b"))) + tell),
        ("a map by its pin", raising.format(get) + tell),
        ("root", "os.setresuid(0, 0, 0)"),
        ("a packet socket", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)"),
    ]


def test_an_escape_reaches_nothing(lab: Lab) -> None:
    tried = _files(lab) + _acts(lab)
    came_of_it = ((what, _escaped(lab, code)) for what, code in tried)
    assert [one for one in came_of_it if one[1] != "PermissionError"] == []
    assert _escaped(lab, "os.listdir('/')") == "done", "the attempts themselves are sound"
    assert (lab.ask("a") or {})["protected"]
