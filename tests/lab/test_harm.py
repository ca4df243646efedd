# SPDX-License-Identifier: GPL-2.0-only
"""Somebody takes our programs and devices away on the host that serves.

As found: with the TC filters gone everything left uncompared, `status` said protected all the
while, and after a failover the survivor contradicted what clients had been told.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator

import pytest

from colo_ebpf.datapath.bpf.loader import pin_directory
from colo_ebpf.datapath.net import tcx
from colo_ebpf.datapath.net.hooks import By
from colo_ebpf.lab import faults
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import UPLINK, Place
from colo_ebpf.lab.workload import DICE, served
from tests.lab import protected

_ROLLS = 8


@pytest.fixture(scope="module", params=list(By))
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A protected pair, with both ways to hold the programs.

    All tests share it. Each leaves a protected pair, but for the last, which kills a host.
    """
    by = request.param

    def choose(_: Lab, place: Place) -> None:
        text = place.config.read_text()
        place.config.write_text(f'{text}\n[datapath]\nhooks = "{by.value}"\n')

    with protected("colotharm", prepare=choose) as made:
        assert (made.ask("a") or {})["hooks"] == by.value
        yield made


def _on_host(lab: Lab, *argv: str, host: str = "a") -> None:
    enter = ["nsenter", f"--net=/run/netns/{lab.places[host].namespace}"]
    subprocess.run([*enter, *argv], check=True, capture_output=True, timeout=20)


def _made_equal(lab: Lab, sentence: str, host: str = "a") -> bool:
    """It was put back, and a checkpoint has stopped the VM since: of this pair, or of another one.

    A pair that had no frames for longer than the peer timeout is another one afterwards.
    """
    told = lab.ask(host) or {}
    said = [row["ago_ms"] for row in told["history"] if row["sentence"] == f"{sentence}: put back"]
    last = told["checkpoints"]["last"]
    return bool(said) and last is not None and last["ago_ms"] + last["pause_ms"] < said[-1]


def _await_made_equal(lab: Lab, sentence: str, host: str = "a") -> None:
    lab.wait(lambda: _made_equal(lab, sentence, host), f"no checkpoint after: {sentence}", 20)
    lab.wait_protected()


def _harm(lab: Lab, sentence: str, *argv: str) -> None:
    """Done, noticed, put back, said, and followed by a checkpoint; then it is protected again."""
    _on_host(lab, *argv)
    _await_made_equal(lab, sentence)


async def _roll(lab: Lab) -> list[str]:
    """Random values, which the two VMs draw differently: each is true after a checkpoint only."""
    lines = Lines(await served(Client(lab.namespace_of("client"), lab.guest_address), DICE))
    async with asyncio.timeout(60):
        told = [await lines.ask("ROLL") for _ in range(_ROLLS)]
    lines.close()
    return told


async def _remembered(lab: Lab, told: list[str]) -> list[str]:
    lines = Lines(await served(Client(lab.namespace_of("client"), lab.guest_address), DICE))
    async with asyncio.timeout(60):
        known = [await lines.ask(f"GET {one.split()[0]}") for one in told]
    lines.close()
    return known


def test_what_is_removed_comes_back(lab: Lab) -> None:
    place = lab.places["a"]
    if (lab.ask("a") or {})["hooks"] == By.TCX.value:
        pins = pin_directory(place.bpffs, lab.name)
        link = str(pins / tcx.DIRECTORY / "nic0_out")
        _harm(
            lab,
            "tap0 ingress: colo_cmp_pvm was taken off",
            *("bpftool", "link", "detach", "pinned", link),
        )
    _harm(lab, "the link device vxlan0 was removed", "ip", "link", "del", "vxlan0")
    _harm(lab, "the tap tap0 is not on the bridge br0", "ip", "link", "set", "tap0", "nomaster")
    assert len(asyncio.run(_roll(lab))) == _ROLLS


def test_a_bridge_that_a_takeover_would_need_is_missed_before(lab: Lab) -> None:
    """By the secondary, whose tap joins it only then; both hosts say so."""
    _on_host(lab, "ip", "link", "del", "br0", host="b")
    said = "there is no bridge br0: the VM's clients are behind it"

    def missed() -> bool:
        ours, theirs = lab.ask("a") or {}, lab.ask("b") or {}
        told = theirs["lacks"] == ours["peer"]["lacks"] == said
        return told and not ours["protected"] and not theirs["protected"]

    lab.wait(missed, "the missing bridge is not told", 20)
    _on_host(lab, "ip", "link", "add", "br0", "up", "type", "bridge", host="b")
    _on_host(lab, "ip", "link", "set", UPLINK, "master", "br0", host="b")
    lab.wait_protected()


def test_a_vm_that_lost_its_tap_is_served_by_the_other(lab: Lab) -> None:
    asyncio.run(_roll(lab))
    _on_host(lab, "ip", "link", "del", "tap0")

    def serves() -> bool:
        return (lab.ask("b") or {}).get("role") in ("solo", "primary")  # with a replica already

    lab.wait(serves, "the other host does not take over", 30)
    lab.wait_protected()
    assert len(asyncio.run(_roll(lab))) == _ROLLS


def test_what_clients_were_told_stays_true(lab: Lab) -> None:
    asyncio.run(_roll(lab))
    here = next(host for host in lab.places if (lab.ask(host) or {})["role"] == "primary")
    filters = (lab.ask(here) or {})["hooks"] == By.CLSACT.value
    if not filters:
        _on_host(lab, "tc", "qdisc", "add", "dev", "tap0", "clsact", host=here)
    _on_host(lab, "tc", "qdisc", "del", "dev", "tap0", "clsact", host=here)
    told = asyncio.run(_roll(lab))
    if filters:
        _await_made_equal(lab, "tap0 ingress: colo_cmp_pvm was taken off", here)
    lab.wait_protected()
    faults.kill(lab, here, "host")
    assert asyncio.run(_remembered(lab, told)) == told
