# SPDX-License-Identifier: GPL-2.0-only
"""The processes of a lab host: those in its network namespace, whoever started them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from colo_ebpf.control.qemu import starter
from colo_ebpf.errors import LabError

_END_S = 10.0


def in_namespace(namespace: str) -> list[int]:
    """Pids of the processes in a named network namespace."""
    try:
        wanted = Path(f"/run/netns/{namespace}").stat().st_ino
    except FileNotFoundError:
        return []
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "ns/net").stat().st_ino == wanted:
                found.append(int(entry.name))
    return sorted(found)


def command_of(pid: int) -> str:
    """Its command line, for people."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def is_vm(pid: int) -> bool:
    """A QEMU."""
    return "qemu-system" in command_of(pid).partition(" ")[0]


def is_daemon(pid: int) -> bool:
    """Our daemon, and not the process that starts its QEMUs."""
    return " run --config " in command_of(pid) and _name_of(pid) != starter.NAME


def _name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def send(pids: list[int], number: signal.Signals) -> None:
    """A signal to each; one that is gone is no error."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end(namespace: str) -> None:
    """SIGKILL everything in the namespace until nothing is left."""
    deadline = time.monotonic() + _END_S
    while pids := in_namespace(namespace):
        send(pids, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            raise LabError(f"namespace {namespace}: processes {pids} do not end")
        time.sleep(0.02)


def pids_of(namespace: str, what: str) -> list[int]:
    """Pids of `vm`, `daemon`, or everything for `host`."""
    keep: dict[str, Callable[[int], bool]] = {
        "vm": is_vm,
        "daemon": is_daemon,
        "host": lambda pid: True,
    }
    if what not in keep:
        raise LabError(f"{what}: not one of vm, daemon, host")
    return [pid for pid in in_namespace(namespace) if keep[what](pid)]


def resume(namespace: str) -> None:
    """SIGCONT to everything in the namespace."""
    send(in_namespace(namespace), signal.SIGCONT)
