# SPDX-License-Identifier: GPL-2.0-only
"""KVM or TCG: some machines have a KVM that boots no guest, so `auto` boots to find out.

First a guest of our own (`boot_probe`), which is all there is for a VM that boots from its disk;
then the VM's kernel, if it has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
from pathlib import Path

from colo_ebpf.control.qemu import boot_probe

_PROBE_S = 6.0


async def choose(wanted: str, qemu: str, kernel: str, cache_dir: Path) -> tuple[str, str]:
    """(accelerator, why). `kernel` "": the VM boots from its disk. The outcome is kept until the
    next boot of the host, for all VMs of this QEMU and kernel: a probe may take twelve seconds."""
    if wanted != "auto":
        return wanted, "configured"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "/dev/kvm cannot be opened"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    asked = hashlib.sha256("\0".join((qemu, kernel)).encode() + boot_probe.IMAGE).hexdigest()[:16]
    memo = cache_dir / f"accel-{asked}"
    with contextlib.suppress(OSError, ValueError):
        known, accel, why = memo.read_text().strip().split(" ", 2)
        if known == boot:
            return accel, why
    accel, why = await try_kvm(qemu, kernel)
    with contextlib.suppress(OSError):
        cache_dir.mkdir(parents=True, exist_ok=True)
        memo.write_text(f"{boot} {accel} {why}\n")
    return accel, why


async def try_kvm(qemu: str, kernel: str) -> tuple[str, str]:
    """(accelerator, why), by booting."""
    failure = await boot_probe.fails(qemu, "kvm", "host")
    if failure:
        return "tcg", f"KVM runs no guest here: {failure}"
    if kernel and not await _boots(qemu, kernel):
        return "tcg", "KVM does not boot the kernel"
    return "kvm", "a probe booted"


async def _boots(qemu: str, kernel: str) -> bool:
    """Does the kernel print its banner under KVM before the deadline?"""
    process = await asyncio.create_subprocess_exec(
        *(qemu, "-machine", "pc,accel=kvm", "-cpu", "host", "-m", "128", "-nodefaults"),
        *("-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", kernel),
        *("-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_PROBE_S):
            await process.stdout.readuntil(b"Kernel panic")  # no root: it came all the way
        return True
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)  # kill() would reap it before asyncio does
        await process.wait()
