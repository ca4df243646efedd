# SPDX-License-Identifier: GPL-2.0-only
"""Does an accelerator run a guest? One of our own does what every 64-bit system does first.

Some hosts have a /dev/kvm that runs firmware and boots no system: a KVM in software that was made
for other guests. So the probe goes through the steps of a boot, one by one, and the first that does
not work is known. It takes a fraction of a second and none of the user's files.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
from collections.abc import Iterator

_DEADLINE_S = 6.0
_DONE = 0x20 << 1 | 1  # what isa-debug-exit makes of the guest's last word

STEPS = {
    "A": "32-bit code",
    "B": "page tables and 64-bit code",
    "C": "a page fault",
    "D": "SSE",
    "E": "user mode and a system call",
    "F": "a timer interrupt",
    "G": "copying memory",
}

# Made of guest/probe/probe.S by guest/probe/build.sh.
IMAGE = base64.b64decode(
    """
    6yfMzAKwrRsAAAEA/k9R5AQAEAAAABAAAAAAAAhyIAAAABAAsD/m6fT6/LwAECAAsP/mIeahuAAAAIAPoj0BAACAcuC4AQAA
    gA+iD7riHXPTsEHm6b8AECAAuYIYAAAxwPOrxwUAECAAByAgAMcFACAgAAcwIADHBRggIAAHQCAAvwAwIAC4hwAAAIkHg8cI
    BQAAIAA9AAAAQHLvxwW4TyAAmwDg/riwBgAADyLguAAQIAAPIti5gAAAwA8yDQEBAAAPMA8gwIPg+w0DAAGADyLADwEVQAMQ
    AOrgABAACAC4EAAAAI7YjsCO0LwAECAAsELm6UiNPeVfEABIjQW9AQAA6KABAABIjT3yYhAASI0F3AEAAOiNAQAADwEdKQIA
    ALsAAABASMdDCFoAAABIgzwlCAAgAFoPhWQBAACDPbxwEAABD4VXAQAAsEPm6Ui4782riWdFIwFmSA9uwGYP1MAPrgWYbhAA
    Zg/vwA+uDY1uEABmSA9+w0gBwEg5ww+FHQEAALBE5um5AgEAwEiNBcQBAAAx0g8wuYEAAMAxwLoIABgADzD/wUiNBSUAAAAx
    0g8wuYQAAMC4AAcAAA8wSI0NCQAAAEG7AgAAAEgPB4zLDwX0DwH4ZUiLBCUAAAAADwH4vAAQIABIOwVpAQAAD4WsAAAAg/sr
    D4WjAAAAsEXm6bsAAOD+x4PwAAAA/wEAAMeD4AMAAAMAAADHgyADAABAAAAAx4OAAwAAoIYBAPv0+oM9y28QAANy6rBG5ukP
    MUjB4iBIjSwQvwAAYAC5AAAgAEi4paWlpaWlpaXzSKu+AABgAL8AAMAAuQAABADzSKXwSP8EJQAAwABIOQQl+P/fAHUcDzFI
    weIgSAHQSDnodg6wR+bpuCAAAADn9PTr/bA/5un69GaJB8dHAggAAI7B6BBmiUcGZsdHBACOw1APINBIPQgAAEB11scEJQgg
    IAAHUCAAxwQlAFAgAIcAIAAPATj/BRZvEABYSIPECEjPU7sAAOD+x4OwAAAAAAAAAP8F/W4QAFtIz8zMzMzMzAAAAAAAAAAA
    //8AAACarwD//wAAAJLPAAAAAAAAAAAA//8AAADyzwD//wAAAPqvAC8AEAMQAAAAAAAPBABgIAAAAAAAzMzMzCFvZy1vbG9j
    """
)


async def fails(qemu: str, accel: str, cpu: str) -> str:
    """At which step the accelerator fails, in words; "": at none."""
    with _image() as fd:
        try:
            process = await asyncio.create_subprocess_exec(
                *(qemu, "-machine", f"pc,accel={accel}", "-cpu", cpu, "-m", "32", "-nodefaults"),
                *("-display", "none", "-no-reboot", "-kernel", f"/proc/self/fd/{fd}"),
                *("-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(fd,),
            )
        except OSError as e:
            return f"{qemu}: {e.strerror}"
    said = await _said(process)
    if process.returncode == _DONE and said == "".join(STEPS):
        return ""
    for letter, step in STEPS.items():
        if letter not in said:
            return f"it fails at {step}"
    return "it does not end"


@contextlib.contextmanager
def _image() -> Iterator[int]:
    fd = os.memfd_create("probe")
    try:
        os.write(fd, IMAGE)
        yield fd
    finally:
        os.close(fd)


async def _said(process: asyncio.subprocess.Process) -> str:
    """What the guest says until QEMU ends, KVM gives up or the time is over; then it is ended."""
    out, err = process.stdout, process.stderr
    assert out is not None and err is not None
    said = bytearray()

    async def listen() -> None:
        while data := await out.read(64):
            said.extend(data)
        await process.wait()

    async def give_up() -> None:
        """KVM says this of an instruction that it cannot run; QEMU stays then, and stands."""
        try:
            await err.readuntil(b"KVM internal error")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await asyncio.wait([listening])

    listening = asyncio.create_task(listen())
    tasks = (listening, asyncio.create_task(give_up()))
    try:
        await asyncio.wait(tasks, timeout=_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)  # kill() would reap it before asyncio does
        await process.wait()
    return said.decode("ascii", errors="replace")
