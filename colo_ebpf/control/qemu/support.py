# SPDX-License-Identifier: GPL-2.0-only
"""Whether a QEMU can carry a protected VM: what is known of its version, and what it says itself.

Where QEMU tells, it is asked: a capability is set, and its answer counts. What only shows when it
is too late, in the middle of a pairing or a checkpoint, is known from QEMU's history.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo_ebpf.control.qemu.cmdline import VmSpec
from colo_ebpf.control.qemu.monitor import Monitors
from colo_ebpf.errors import QmpError, VmError

Run = Callable[..., Awaitable[Any]]  # of a QMP command; arguments by name
Version = tuple[int, int, int]
TRIED = ((7, 2), (10, 0))  # docs/operate/platforms.md
_SHARES_DISK = ((7, 2), (10, 0))
_ASK_MS = 20_000


@dataclass(frozen=True, slots=True)
class Use:
    """What a QEMU is to be used for."""

    qemu: str
    machine: str = "pc"
    accel: str = "kvm"
    preload: str = ""  # under TCG
    shares_disk: bool = False


def use_of(spec: VmSpec) -> Use:
    """What the VM's QEMU has to be able to do."""
    return Use(spec.qemu, spec.machine, spec.accel, spec.preload, bool(spec.shared_disks))


def refused(version: Version, use: Use) -> str:
    """Why this QEMU cannot do that, and what to do; empty if nothing is known against it."""
    if (8, 2, 0) <= version < (9, 1, 0):
        return (
            "QEMU 8.2 to 9.0 aborts when a secondary enters COLO; install 7.2, or 10.0.7 or later"
        )
    if (10, 0, 0) <= version < (10, 0, 7) or version[:2] == (10, 1):
        return "QEMU 10.0 before 10.0.7, and 10.1, never enter COLO; install 10.0.7 or later"
    if version < (11, 0, 0) and use.machine.split(",")[0].startswith(("q35", "pc-q35")):
        return (
            f"machine {use.machine}: QEMU before 11.0 can crash when a secondary with q35 loads a"
            ' checkpoint; set machine = "pc"'
        )
    if use.shares_disk and version[:2] not in _SHARES_DISK:
        return "a shared disk was tried with QEMU 7.2 and 10.0; install one, or copy the disk"
    return _refused_for_tcg(version, use) if use.accel == "tcg" else ""


def _refused_for_tcg(version: Version, use: Use) -> str:
    if version >= (11, 0, 0):
        return (
            "under TCG QEMU 11 is not reliable: after a takeover the guest may not answer; use KVM,"
            " or QEMU 10.0.7 or later of 10.0"
        )
    if not use.preload:
        return (
            "under TCG QEMU does not survive its own checkpoints; use KVM, or set vm.preload to the"
            " helper of guest/lab-tcg"
        )
    return ""


async def enable_colo(run: Run) -> None:
    """Set the capability. QEMU 11 refuses it without `return-path`; before that a migration with
    both fails. QmpError has QEMU's reason."""
    try:
        await _set(run, "x-colo")
    except QmpError as alone:
        try:
            await _set(run, "return-path", "x-colo")
        except QmpError:
            raise alone from None


async def _set(run: Run, *names: str, state: bool = True) -> None:
    states = [{"capability": name, "state": state} for name in names]
    await run("migrate-set-capabilities", capabilities=states)


async def require_colo(run: Run, use: Use) -> Version:
    """Ask a QEMU that runs; nothing about it is changed. QmpError says why it cannot be used."""
    names = {c["capability"] for c in await run("query-migrate-capabilities")}
    if "x-colo" not in names:
        raise QmpError(f"{use.qemu} has no x-colo capability; install a QEMU built with COLO")
    try:
        await enable_colo(run)
    except QmpError as e:
        raise QmpError(
            f"{use.qemu} cannot run COLO, install a QEMU built with COLO and replication: {e}"
        ) from e
    await _set(run, "x-colo", state=False)
    asked = (await run("query-version"))["qemu"]
    version = asked["major"], asked["minor"], asked["micro"]
    if why := refused(version, use):
        raise QmpError(f"{use.qemu} {text(version)}: {why}")
    return version


def text(version: Version) -> str:
    """As people write it."""
    return ".".join(map(str, version))


async def release_of(binary: str) -> tuple[int, int]:
    """Major and minor version, as it prints them: far sooner than a QEMU that is asked. Raises
    VmError."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(binary, "--version"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as e:
        raise VmError(f"QEMU {binary}: {e.strerror}; install qemu-system-x86") from e
    printed, _ = await process.communicate()
    match = re.search(rb"version (\d+)\.(\d+)", printed)
    if not match:
        raise VmError(f"QEMU {binary}: no version in {printed!r}")
    return int(match[1]), int(match[2])


async def probe(use: Use) -> Version:
    """Start a QEMU without a VM and ask it. VmError says why it cannot be used."""
    with tempfile.TemporaryDirectory() as directory:
        main, oob, log = (Path(directory) / name for name in ("main", "oob", "log"))
        argv = [use.qemu, "-machine", "none", "-nodefaults", "-display", "none"]
        for path in (main, oob):
            argv += ["-qmp", f"unix:{path},server=on,wait=off"]
        with log.open("wb") as output:
            process = await _start(argv, environment(use), output)
        monitors = Monitors(use.qemu, _ASK_MS, lambda event: None)
        try:
            async with asyncio.timeout(_ASK_MS / 1000):
                await _listens(process, (main, oob))
            await monitors.connect(main, oob)
            return await require_colo(monitors.run, use)
        except (QmpError, TimeoutError) as e:
            said = log.read_text(errors="replace").strip()
            raise VmError("\n".join(filter(None, (str(e), said)))) from e
        finally:
            await monitors.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _start(argv: list[str], env: dict[str, str], output: Any) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=env
        )
    except OSError as e:
        raise VmError(f"QEMU {argv[0]}: {e.strerror}; install qemu-system-x86") from e


async def _listens(process: asyncio.subprocess.Process, paths: tuple[Path, ...]) -> None:
    while not all(path.exists() for path in paths):
        if process.returncode is not None:
            raise QmpError("QEMU ended at once")
        await asyncio.sleep(0.01)  # a socket file has no event before its listener


def environment(use: Use) -> dict[str, str]:
    """Of a QEMU process."""
    helper = {"LD_PRELOAD": use.preload} if use.preload and use.accel == "tcg" else {}
    return dict(os.environ) | helper
