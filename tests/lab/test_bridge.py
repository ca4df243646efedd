# SPDX-License-Identifier: GPL-2.0-only
"""A host whose clients' bridge is none does not become part of a pair."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import BRIDGE
from tests.capabilities import require
from tests.lab import clean, cli

_SAID = "ovsbr0 is no Linux bridge (veth)"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Host b names a device that is no bridge, as Open vSwitch's are none. No daemon runs."""
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotbridge"))
    try:
        lab.build(choose(Wanted()))
        place = lab.places["b"]
        made = "link add ovsbr0 type veth peer name ovsp"
        subprocess.run(["ip", "-n", place.namespace, *made.split()], check=True)
        text = place.config.read_text()
        place.config.write_text(text.replace(f'bridge = "{BRIDGE}"', 'bridge = "ovsbr0"'))
        yield lab
    finally:
        lab.down()


def test_it_is_refused_before_a_vm_is_protected(lab: Lab) -> None:
    """As found: protected, and at the takeover `join bridge ovsbr0: Operation not supported`."""
    ran = cli(lab, "b", "run")
    assert ran.returncode == 2
    assert _SAID in ran.stderr.splitlines()[-1]
    told = [line for line in cli(lab, "b", "doctor").stdout.splitlines() if "client bridge" in line]
    assert len(told) == 1 and told[0].startswith("LACKS") and _SAID in told[0]
    place = lab.places["b"]
    checked = subprocess.run(
        [
            *("nsenter", f"--net=/run/netns/{place.namespace}", sys.executable),
            *("-m", "colo_ebpf.cli.main", "config", "check", str(place.config)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 2 and f"vm.nic.bridge: {_SAID}" in checked.stderr
