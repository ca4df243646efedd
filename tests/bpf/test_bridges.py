# SPDX-License-Identifier: GPL-2.0-only
"""What is named as the clients' bridge, looked at before a takeover has to join it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from colo_ebpf.cli.doctor import _configured
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.datapath.net import bridges, namespaces, netdev, tuntap
from colo_ebpf.datapath.spec import PlaneNic
from colo_ebpf.errors import AttachError
from tests.bpf.rig import Rig
from tests.capabilities import require
from tests.netns import enter

_PATIENCE_S = 20.0
BASE = parse_config(EXAMPLE, Path("example"))


def _ip(words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)


def _made(words: str) -> None:
    done = _ip(words)
    assert done.returncode == 0, f"{words}: {done.stderr}"


@pytest.fixture
def inside() -> Iterator[None]:
    """A namespace with nothing but its loopback."""
    name = f"colotbridge{os.getpid()}"
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    namespaces.create(name)
    enter(os.open(f"/var/run/netns/{name}", os.O_RDONLY))
    try:
        yield
    finally:
        enter(home)
        namespaces.remove(name)


def _doctor(bridge: str, **nic_has: Any) -> str:
    nic = msgspec.structs.replace(BASE.vm.nic[0], bridge=bridge, **nic_has)
    asked = msgspec.structs.replace(BASE, vm=msgspec.structs.replace(BASE.vm, nic=[nic]))
    return dict(_configured(asked))["client bridge"]()


@pytest.mark.usefixtures("inside")
def test_a_bridge_as_the_lab_makes_it_is_in_order() -> None:
    bridges.create("br0")
    assert (bridges.not_a_bridge("br0"), bridges.fault("br0")) == ("", "")
    assert _doctor("br0") == "br0: there"


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("link add ovsbr0 type veth peer name ovsp", r"is no Linux bridge \(veth\)"),
        ("link add ovsbr0 type vxlan id 5 dstport 5555", r"is no Linux bridge \(vxlan\)"),
        ("link set lo name ovsbr0", r"is no Linux bridge \(but a network card"),
        ("link set lo up", "no such network device; create it first"),
    ],
)
def test_what_is_none_is_told_by_doctor(made: str, said: str) -> None:
    """As found: `doctor` was content, and at the takeover the VM could not be reached."""
    if "lo name" in made:
        _made("link set lo down")
    _made(made)
    with pytest.raises(AttachError, match=f"ovsbr0:? {said}"):
        _doctor("ovsbr0")


@pytest.mark.usefixtures("inside")
def test_one_that_is_down_is_told_with_the_remedy() -> None:
    bridges.create("br0")
    netdev.set_down("br0")
    with pytest.raises(AttachError, match="br0 is down: ip link set br0 up"):
        _doctor("br0")


def _waits_until_forwarding(port: str) -> float:
    """Seconds."""
    began = time.monotonic()
    while "state forwarding" not in _ip(f"-d link show {port}").stdout:
        assert time.monotonic() - began < _PATIENCE_S, "the port never forwards"
        time.sleep(0.05)  # the kernel tells nobody
    return time.monotonic() - began


@pytest.mark.usefixtures("inside")
def test_one_that_runs_spanning_tree_is_told_with_the_remedy() -> None:
    """As found: NetworkManager's default, and 36.8 s of silence after a takeover."""
    bridges.create("br0")
    _made("link add port0 type veth peer name far0")
    for end in ("port0", "far0"):
        netdev.set_up(end)
    _made("link set br0 type bridge stp_state 1")
    _made("link set br0 type bridge forward_delay 200")
    remedy = "ip link set br0 type bridge stp_state 0"
    with pytest.raises(AttachError, match=f"a new port silent for 4 s.*: {remedy}"):
        _doctor("br0")
    bridges.join("port0", "br0")
    there = ["bridge", "link", "set", "dev", "port0", "state", "3"]
    refused = subprocess.run(there, capture_output=True, text=True, check=False)
    assert "busy" in refused.stderr, "the kernel would let us have it forward at once"
    assert _waits_until_forwarding("port0") > 3
    bridges.leave("port0")
    _made(remedy.removeprefix("ip "))
    _made("link set br0 type bridge forward_delay 1500")
    assert _doctor("br0") == "br0: there"
    bridges.join("port0", "br0")
    assert "state forwarding" in _ip("-d link show port0").stdout, "whatever the delay is"


@pytest.mark.usefixtures("inside")
def test_a_new_port_of_one_that_filters_vlans_is_in_its_default_one() -> None:
    bridges.create("br0")
    assert bridges.new_port_vlan("br0") is None
    if _ip("link set br0 type bridge vlan_filtering 1").returncode:
        pytest.skip("the kernel's bridges filter no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)")
    _made("link set br0 type bridge vlan_default_pvid 30")
    assert _doctor("br0") == "br0: there, the tap will be in VLAN 30"
    _made("link set br0 type bridge vlan_default_pvid 0")
    with pytest.raises(AttachError, match="gives a new port none"):
        _doctor("br0")


@pytest.mark.usefixtures("inside")
def test_a_tap_that_joins_has_the_vlans_it_is_to_have() -> None:
    bridges.create("br0")
    with pytest.raises(AttachError, match=r"br0 filters no VLANs.*vlan_filtering 1"):
        _doctor("br0", vlan=20)
    if _ip("link set br0 type bridge vlan_filtering 1").returncode:
        pytest.skip("the kernel's bridges filter no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)")
    _made("link set br0 type bridge vlan_default_pvid 0")
    said = "br0: there, the tap will be in VLAN 20, and with tags in 30, 31"
    assert _doctor("br0", vlan=20, trunk=[30, 31]) == said
    _made("link set br0 type bridge vlan_default_pvid 1")
    tuntap.create_tap("t0", 1500)
    for _ in range(2):  # it is put on it again
        bridges.join("t0", "br0", 20, (30, 31))
        words = ["bridge", "vlan", "show", "dev", "t0"]
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert shown.split()[3:] == ["20", "PVID", "Egress", "Untagged", "30", "31"]


@pytest.mark.parametrize(
    ("vlan", "trunk", "default", "changes"),
    [
        (0, (), 1, []),
        (20, (), 1, [("add", 20, ["pvid", "untagged"]), ("del", 1, [])]),
        (20, (30,), 0, [("add", 20, ["pvid", "untagged"]), ("add", 30, [])]),
        (1, (30,), 1, [("add", 1, ["pvid", "untagged"]), ("add", 30, [])]),
        (20, (1,), 1, [("add", 20, ["pvid", "untagged"]), ("add", 1, [])]),
        (0, (30,), 1, [("add", 30, [])]),
    ],
)
def test_vlans_of_a_port_follow_from_what_it_is_to_have(
    vlan: int, trunk: tuple[int, ...], default: int, changes: list[tuple[str, int, list[str]]]
) -> None:
    made = bridges.vlan_changes(vlan, trunk, default)
    assert [(what, info["vid"], info.get("flags", [])) for what, info in made] == changes


def test_a_plane_is_not_made_for_what_no_tap_can_join() -> None:
    with Rig() as rig:
        spec = rig.plane._spec
        for bridge, said in (("up0", "no Linux bridge"), ("none0", "no such network device")):
            rig.plane.wiring._spec = dataclasses.replace(
                spec, nics=(PlaneNic("tap9", bridge, 1500),)
            )
            try:
                with pytest.raises(AttachError, match=f"{bridge}.*{said}"):
                    asyncio.run(rig.plane.prepare())
            finally:
                rig.plane.wiring._spec = spec
            assert not netdev.exists("tap9"), "nothing was made"


def test_a_plane_is_made_where_a_takeover_is_slow_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Rig() as rig:
        _made("link set br1 type bridge stp_state 1")
        try:
            asyncio.run(rig.plane.prepare())
        finally:
            _made("link set br1 type bridge stp_state 0")
        assert "br1: spanning tree keeps a new port silent" in caplog.text


def test_a_vm_that_runs_is_not_left_without_a_daemon_for_it() -> None:
    with Rig() as rig:
        spec = rig.plane._spec
        gone = tuple(dataclasses.replace(nic, bridge="none0") for nic in spec.nics)
        rig.plane.wiring._spec = dataclasses.replace(spec, nics=gone)
        try:
            asyncio.run(rig.plane.prepare())
        finally:
            rig.plane.wiring._spec = spec


def _filter(*commands: str) -> None:
    for command in commands:
        subprocess.run(["nft", command], check=True, capture_output=True)


@pytest.mark.usefixtures("inside")
def test_a_packet_filter_in_the_bridges_path_is_told_with_the_remedy() -> None:
    """As found: with Docker's, no client reached the VM; a stateful one cut all at a takeover."""
    require("nft", "br-netfilter")
    switches = [Path(f"/proc/sys/net/bridge/bridge-nf-call-{one}tables") for one in ("ip", "ip6")]
    look = dict(_configured(BASE))["packet filter"]
    for switch in switches:
        switch.write_text("0\n")
    _filter(
        "add table ip filter",
        "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
    )
    assert look() == "frames that pass a bridge meet no packet filter"
    switches[0].write_text("1\n")
    with pytest.raises(AttachError, match=r"FORWARD drops by default.*sysctl net\.bridge\."):
        look()
    _filter("chain ip filter FORWARD { policy accept; }")
    assert look() == "bridge-nf-call-iptables: on, and nothing there stops a client"
    _filter("add rule ip filter FORWARD ct state established accept")
    with pytest.raises(AttachError, match="ip filter goes by connection state"):
        look()
