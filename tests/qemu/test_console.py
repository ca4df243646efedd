# SPDX-License-Identifier: GPL-2.0-only
"""The guest's serial console: a socket to talk to it, a file of all that it said."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from colo_ebpf.control.qemu import cmdline
from colo_ebpf.model import VmRole
from tests.capabilities import require
from tests.qemu.pair import Pair, take_over, until


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "qemu", "guest")


async def test_what_the_guest_says_comes_to_the_console_and_into_the_file(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    async with pair.place():
        a = await pair.start("a", VmRole.PRIMARY)
        reader, writer = await asyncio.open_unix_connection(str(cmdline.console_path(a.spec)))
        await a.vm.cont()
        async with asyncio.timeout(60):
            await reader.readuntil(b"serving")
        writer.close()
        logged = a.spec.run_dir / "serial.log"
        await until(lambda: b"serving" in logged.read_bytes(), "the log of the console")
        await pair.pair_up(a, await pair.start("b", VmRole.SECONDARY))


async def test_a_console_that_nobody_reads_holds_nothing_up(tmp_path: Path) -> None:
    """And the survivor has one, too, whose end is not the VM's."""
    async with Pair(tmp_path) as (a, b):
        for side in (a, b):
            _, writer = await asyncio.open_unix_connection(str(cmdline.console_path(side.spec)))
            writer.write(b"x" * 4096)
        await take_over(a, b)
        assert await b.vm.running()
