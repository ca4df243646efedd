# SPDX-License-Identifier: GPL-2.0-only
"""`colo-ebpf verify` on the daemons of a protected pair, and what becomes of what it opens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.control.admin.control_socket import Conversation
from colo_ebpf.lab import faults, processes
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.workload import LEDGER, until_serving
from tests.lab import cli, protected

ENTRIES = 50


@pytest.fixture(scope="module")
def pair() -> Iterator[Lab]:
    """A protected pair whose guest has written to its disk.

    All tests share it. Each leaves a protected pair, and all but the last one host a's VM serving.
    """
    with protected("colotestv") as lab:
        asyncio.run(_write(lab, 1))
        yield lab


async def _write(lab: Lab, first: int) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    lines = Lines(await client.connect(LEDGER))
    for n in range(first, first + ENTRIES):
        async with asyncio.timeout(60):
            assert (await lines.ask(f"ADD {n} entry")).startswith("OK")
    lines.close()


def _verify(lab: Lab, host: str, *words: str) -> subprocess.CompletedProcess[str]:
    return cli(lab, host, "verify", *words)


def _plain(lab: Lab, host: str) -> dict[str, Any]:
    return dict(json.loads(_verify(lab, host, "--json").stdout))


def _socket(lab: Lab, host: str) -> Path:
    return lab.places[host].run_dir / "images.sock"


def _spoil(lab: Lab, host: str, at: int, data: bytes) -> None:
    with lab.places[host].disk.open("r+b") as image:
        image.seek(at)
        image.write(data)


def test_what_was_opened_is_closed_whatever_becomes_of_the_asker(pair: Lab) -> None:
    socket_file = _socket(pair, "a")
    with Conversation(pair.places["a"].run_dir / "ctl.sock") as first:
        first.ask("lend")
        busy = _verify(pair, "a")
        assert busy.returncode == 2
        assert "are being compared already" in busy.stderr
        assert socket_file.exists()
    pair.wait(lambda: not socket_file.exists(), "still open", 30)
    assert _verify(pair, "a").returncode == 0

    with Conversation(pair.places["a"].run_dir / "ctl.sock") as second:
        second.ask("lend")
        faults.kill(pair, "a", "daemon")
        assert socket_file.exists()
        pair.heal()
        pair.wait_protected()
    assert _verify(pair, "a").returncode == 0, "what the dead daemon left is closed first"


def test_a_pair_that_ends_meanwhile_says_nothing(pair: Lab) -> None:
    with Conversation(pair.places["a"].run_dir / "ctl.sock") as asked:
        asked.ask("lend")
        faults.kill(pair, "b", "vm")
        pair.wait(lambda: (pair.ask("a") or {}).get("mode") == "solo", "a is not alone", 60)
        assert asked.ask("take-back") == {"lasted": False}
    with contextlib.suppress(IndexError):
        assert processes.pids_of(pair.places["a"].namespace, "vm")
    pair.wait_protected()
    assert _verify(pair, "a").returncode == 0


def test_equal_different_equal_again_after_a_failover_and_never_from_the_wrong_side(
    pair: Lab,
) -> None:
    done = _verify(pair, "a")
    assert done.returncode == 0, done.stderr
    assert "equal, compared in" in done.stdout
    found = _plain(pair, "a")
    assert found["equal"]
    (disk,) = found["disks"]
    assert 0 < disk["read_bytes"] < disk["size_bytes"] == 64 << 20
    assert not _socket(pair, "a").exists(), "closed when it is done"

    refused = _verify(pair, "b")
    assert refused.returncode == 2
    assert "ask the primary of a protected pair" in refused.stderr

    _spoil(pair, "b", 20 << 20, b"spoilt")
    different = _verify(pair, "a")
    assert different.returncode == 1
    assert f"parent0: differs at {20 << 20}, 512 bytes" in different.stdout

    faults.kill(pair, "a", "vm")
    pair.wait(lambda: (pair.ask("b") or {}).get("role") in ("solo", "primary"), "b is not alone")
    pair.wait_protected()
    found = _plain(pair, "b")  # its images were once exported by the secondary it was
    assert found["equal"], found
    asyncio.run(_write(pair, ENTRIES + 1))
    assert _verify(pair, "b").returncode == 0
