# SPDX-License-Identifier: GPL-2.0-only
"""A pair whose arbiter is etcd: cut off from it, and a failover while it does not answer."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from colo_ebpf.datapath.net import namespaces
from colo_ebpf.errors import LabError
from colo_ebpf.lab import faults, processes, topology
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.workload import LEDGER, PATIENCE_S, until_serving
from tests.capabilities import require
from tests.etcd import of_lab
from tests.lab import clean, cli


@pytest.fixture(scope="module")
def pair() -> Iterator[Lab]:
    """A protected pair with its record in etcd."""
    require("root", "bpf", "qemu", "guest", "etcd")
    lab = clean(Lab("coloteste"))
    try:
        lab.up(choose(Wanted()), "etcd")
        yield lab
    finally:
        lab.down()
    names = [lab.namespace_of(host) for host in ("a", "b", "client", "arbiter")]
    assert not set(names) & set(namespaces.names())
    assert not topology.directory(lab.name).exists()


def _status(lab: Lab, host: str) -> dict[str, Any]:
    return dict(lab.ask(host) or {"sentence": "", "mode": "", "record": {"text": ""}})


def _why(lab: Lab, host: str) -> str:
    return str(_status(lab, host).get("unprotected_why", ""))


def test_an_etcd_without_room_ends_protection_before_it_is_needed(pair: Lab) -> None:
    """It answers what is read, and refuses what a takeover would write."""
    of_lab.set_room(pair, left=False)
    for host in topology.HOSTS:
        pair.wait(lambda host=host: "NOSPACE" in _why(pair, host), f"{host} is silent", 60)
    of_lab.set_room(pair, left=True)
    pair.wait_protected()


def test_one_host_is_cut_off_from_the_arbiter(pair: Lab) -> None:
    assert pair.describe()["arbiter"]["kind"] == "etcd"
    faults.cut(pair, "arbiter", "a")
    shown = {host: cli(pair, host, "arbiter", "show") for host in topology.HOSTS}
    assert (shown["a"].returncode, shown["b"].returncode) == (2, 0)
    assert "etcd did not answer (http://10.77.3.10:2379: " in shown["a"].stderr
    assert "paired a/" in shown["b"].stdout
    doctor = cli(pair, "a", "doctor").stdout
    assert "LACKS  arbiter" in doctor
    for host, says in (("a", "the arbiter fails"), ("b", "a says that the arbiter fails")):
        pair.wait(lambda host=host, says=says: says in _why(pair, host), f"{host} is silent", 60)
    assert "peer's ARBITER" in cli(pair, "b", "status").stdout
    pair.heal()
    pair.wait_protected()
    assert cli(pair, "a", "arbiter", "show").stdout == shown["b"].stdout
    again = cli(pair, "a", "arbiter", "init", "--yes")
    assert again.returncode == 2
    assert "holds a record already" in again.stderr
    with pytest.raises(LabError, match="only `cut arbiter`"):
        faults.cut(pair, "link", "a")


def test_nothing_leaves_while_the_arbiter_hangs_and_the_takeover_follows(pair: Lab) -> None:
    async def scenario() -> None:
        client = Client(pair.namespace_of("client"), pair.guest_address)
        await until_serving(client)
        lines = Lines(await client.connect(LEDGER))
        assert (await lines.ask("ADD 1 before")).startswith("OK 1 ")
        processes.send(processes.in_namespace(pair.namespace_of("arbiter")), signal.SIGSTOP)
        faults.kill(pair, "a", "vm")
        answer = asyncio.create_task(lines.ask("ADD 2 meanwhile"))
        await asyncio.to_thread(pair.wait, withheld, "b does not say that it waits", 60)
        assert not answer.done()
        assert _status(pair, "b")["record"]["text"].startswith("paired a/")
        assert "did not answer" in cli(pair, "b", "status").stdout
        processes.resume(pair.namespace_of("arbiter"))
        await asyncio.to_thread(pair.wait, taken_over, "b does not take over", 60)
        async with asyncio.timeout(PATIENCE_S):
            assert (await answer).startswith("OK 2 ")
        lines.close()

    def withheld() -> bool:
        said = [_status(pair, host)["sentence"] for host in topology.HOSTS]
        assert not any(_status(pair, host)["mode"] == "solo" for host in topology.HOSTS)
        return all("output stays withheld: etcd did not answer" in one for one in said)

    def taken_over() -> bool:
        text = _status(pair, "b")["record"]["text"]
        return text.startswith("paired b/") or (text.startswith("solo b/") and "active" in text)

    asyncio.run(scenario())
    pair.wait_protected()
