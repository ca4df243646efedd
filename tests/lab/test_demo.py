# SPDX-License-Identifier: GPL-2.0-only
"""The whole way with real VMs: each fault of the demo, and what a lab leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo_ebpf.datapath.net import namespaces
from colo_ebpf.lab import mounts, processes, topology
from colo_ebpf.lab.demo import demo
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.scenario import SCENARIOS
from colo_ebpf.lab.topology import Guest
from tests.capabilities import require
from tests.lab import clean

NAME = "colotdemo"


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf", "qemu", "guest")


def _left(lab: Lab) -> list[str]:
    names = [lab.namespace_of(host) for host in ("a", "b", "client", "arbiter")]
    found = [f"namespace {name}" for name in names if name in namespaces.names()]
    found += [f"process {pid}" for name in names for pid in processes.in_namespace(name)]
    found += [f"mount {point}" for point in mounts.mounted(topology.directory(lab.name))]
    if topology.directory(lab.name).exists():
        found.append(str(topology.directory(lab.name)))
    return found


@pytest.mark.parametrize("fault", SCENARIOS)
def test_the_client_never_notices(fault: str) -> None:
    lab = clean(Lab(NAME))
    report = demo(lab, choose(Wanted()), fault)
    assert report.ok, report.text()
    assert _left(lab) == []


def test_the_vm_may_have_changed_hosts_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine host a may be silent for too long while the guest boots. The demo waited
    then for a mismatch on a, which was the secondary."""
    up = Lab.up

    def up_and_over(lab: Lab, guest: Guest) -> None:
        up(lab, guest)
        lab.ask("b", "switchover")
        lab.wait(lambda: _serves(lab, "b"), "b does not serve")

    monkeypatch.setattr(Lab, "up", up_and_over)
    lab = clean(Lab(NAME))
    report = demo(lab, choose(Wanted()), "host-kill")
    assert report.ok, report.text()
    assert "the hosts change places" in report.text()


def _serves(lab: Lab, host: str) -> bool:
    status = lab.ask(host)
    return bool(status and status["protected"] and status["state"] == "primary")


def test_what_a_crash_left_is_cleaned_by_the_next_up() -> None:
    lab = clean(Lab(NAME))
    guest = choose(Wanted())
    lab.build(guest)
    lab.start_daemon(lab.places["a"])
    assert _left(lab) != []
    said: list[str] = []
    again = Lab(NAME, said.append)
    try:
        again.up(guest)
        assert "cleaning what an earlier lab left" in said
        facts = again.describe()
        assert all(host["protected"] for host in facts["hosts"].values())
        for host in facts["hosts"].values():
            assert Path(f"/proc/{host['daemon_pid']}").exists()
            assert Path(host["control_socket"]).exists()
            assert Path(host["qmp_socket"]).exists()
    finally:
        again.down()
    assert _left(again) == []
