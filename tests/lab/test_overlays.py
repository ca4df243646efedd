# SPDX-License-Identifier: GPL-2.0-only
"""A secondary whose overlays fill: a checkpoint in time, and what happens where there is none."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo_ebpf.lab import faults
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.workload import LEDGER, PATIENCE_S, until_serving
from tests.capabilities import require
from tests.lab import clean

_LIMIT_MIB = 4
_BATCH = 200
_ASKS = f"asks for a checkpoint: the overlays of disk 0 fill: 2 of {_LIMIT_MIB} MiB"
_EMPTIED_BYTES = 1536 << 10  # empty ones have 600 KiB; more is written after the checkpoint


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A protected pair; host b's overlays have a small file system of their own."""
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotesto"))
    try:
        lab.build(choose(Wanted()))
        for place in lab.places.values():
            text = place.config.read_text()
            limit = f"overlay-limit-mib = {_LIMIT_MIB}\noverlay-dir"
            place.config.write_text(text.replace("overlay-dir", limit))
            (place.directory / "overlay").mkdir()
        _mount(lab)
        for place in lab.places.values():
            lab.start_daemon(place)
        lab.wait_protected()
        yield lab
    finally:
        lab.down()


def _mount(lab: Lab) -> None:
    directory = str(lab.places["b"].directory / "overlay")
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "colo-test", directory], check=True, timeout=10
    )


def _status(lab: Lab, host: str) -> dict[str, Any]:
    status = lab.ask(host)
    assert status is not None
    return dict(status)


def _for_the_peer(lab: Lab) -> int:
    """Checkpoints that the secondary asked for."""
    return int(_status(lab, "a")["checkpoints"]["by_cause"].get("peer", 0))


def _used(lab: Lab) -> int:
    return sum(one["used_bytes"] for one in _status(lab, "b")["overlays"])


def _refused_writes(lab: Lab) -> bool:
    """As the primary's QEMU has written down."""
    logs = lab.places["a"].run_dir.glob("events-*.out")
    return any(b"QUORUM_REPORT_BAD" in path.read_bytes() for path in logs)


def _fill(filler: Path) -> None:
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            assert file.write(bytes(1 << 16))


def _log(lab: Lab, host: str) -> str:
    return lab.places[host].log.read_text()


async def _append(lab: Lab, first: int, count: int) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)
    await until_serving(client)
    lines = Lines(await client.connect(LEDGER))
    for number in range(first, first + count):
        async with asyncio.timeout(PATIENCE_S):
            assert (await lines.ask(f"ADD {number} {'x' * 400}")).startswith("OK")
    lines.close()


@pytest.mark.timeout(900)  # on a busy machine the two VMs differ often: that empties them, too
def test_a_checkpoint_comes_before_they_are_full(lab: Lab) -> None:
    before = _for_the_peer(lab)
    (disk,) = _status(lab, "b")["overlays"]
    assert disk["limit_bytes"] == _LIMIT_MIB << 20
    assert "asks for a checkpoint" not in _log(lab, "b")
    written = 0
    while _for_the_peer(lab) == before:  # one for another cause may come first, and empties them
        asyncio.run(_append(lab, written + 1, _BATCH))
        written += _BATCH
    assert _ASKS in _log(lab, "b")
    assert written > 1000, "half the limit is more than this"
    lab.wait(lambda: _used(lab) < _EMPTIED_BYTES, "the overlays do not shrink", 30)
    assert _status(lab, "a")["protected"]
    assert _status(lab, "b")["disk"] == "replicated"


def test_without_room_the_primary_goes_on_alone_until_there_is(lab: Lab) -> None:
    generation = _status(lab, "a")["record"]["generation"]
    filler = lab.places["b"].directory / "overlay" / "filler"
    _fill(filler)
    lab.wait(lambda: "no room left, again after" in str(_status(lab, "b")), "b is not unfit", 60)
    lab.wait(lambda: _status(lab, "a")["mode"] == "solo", "a does not leave the pair", 60)
    assert _status(lab, "a")["record"]["generation"] > generation
    asyncio.run(_append(lab, 1, 10))
    filler.unlink()
    lab.wait_protected()
    assert _status(lab, "b")["disk"] == "replicated"


def test_a_write_that_was_refused_while_the_primarys_daemon_was_gone_ends_the_pair(
    lab: Lab,
) -> None:
    async def append() -> None:
        client = Client(lab.namespace_of("client"), lab.guest_address)
        await until_serving(client)
        lines = Lines(await client.connect(LEDGER))
        number = int((await lines.ask("SUM")).split()[1]) + 1
        faults.kill(lab, "a", "daemon")
        _fill(filler)
        async with asyncio.timeout(PATIENCE_S):
            answer = asyncio.create_task(lines.ask(f"ADD {number} {'x' * 400}"))
            while not _refused_writes(lab):
                await asyncio.sleep(0.05)
            lab.start_daemon(lab.places["a"])
            assert (await answer).startswith(f"OK {number} "), "the primary's guest was told so"
        lines.close()

    lab.wait_protected()
    generation = _status(lab, "a")["record"]["generation"]
    filler = lab.places["b"].directory / "overlay" / "filler"
    asyncio.run(append())
    lab.wait(lambda: (lab.ask("a") or {}).get("mode") == "solo", "a does not leave the pair", 60)
    assert "bidding to go on alone: a write to the secondary's disk failed" in _log(lab, "a")
    assert _status(lab, "a")["record"]["generation"] > generation
    filler.unlink()
    lab.wait_protected()
