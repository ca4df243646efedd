# SPDX-License-Identifier: GPL-2.0-only
"""Whose a device is: nothing of others is taken, and no VM takes another's."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.datapath import removal
from colo_ebpf.datapath.bpf.loader import pin_directory
from colo_ebpf.datapath.net import delay_line, netdev, ownership, tuntap, vxlan
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.datapath.spec import PlaneNic, PlaneSpec
from colo_ebpf.errors import AttachError
from tests.bpf.attached import attached
from tests.bpf.rig import Rig

DEVICES = ("tap0", "tap1", "vx0", "vx0-in", "vx0-out")


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as made:
        yield made


def _spec(rig: Rig, **other: object) -> PlaneSpec:
    """Of a second VM on this host, all its own but for what is given."""
    own: dict[str, object] = {
        "vm": "second",
        "nics": (PlaneNic("tapu", "br1", 1500),),
        "link_device": "vx9",
        "vxlan_port": 4790,
    }
    return dataclasses.replace(rig.plane._spec, **(own | other))  # type: ignore[arg-type]


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


def _attached() -> list[dict[str, list[str]]]:
    return [attached(device) for device in DEVICES]


def _refused(rig: Rig, said: str, **other: object) -> None:
    """At once, with that sentence, and the first VM does not notice."""
    before = _attached()
    with pytest.raises(AttachError, match=said):
        DataPlane.open(_spec(rig, **other))
    assert _attached() == before
    assert {ownership.owner(device) for device in DEVICES} == {"t"}


def test_what_is_made_says_whose_it_is(rig: Rig) -> None:
    assert {ownership.owner(device) for device in DEVICES} == {"t"}
    shown = subprocess.run(["ip", "link", "show", "vx0"], capture_output=True, check=True).stdout
    assert b"alias colo-ebpf: t" in shown


def test_a_second_vm_with_the_same_tunnel_is_refused(rig: Rig) -> None:
    """As found: it took the first one off the net, and both daemons said "protected"."""
    said = r"vx0 belongs to VM t: give VM second another link\.device, or, .* ip link del vx0"
    _refused(rig, said, link_device="vx0", vxlan_port=rig.plane._spec.vxlan_port)
    _refused(rig, said, link_device="vx0")


def test_a_second_vm_with_the_same_tap_is_refused(rig: Rig) -> None:
    said = r"tap0 belongs to VM t: give VM second another vm\.nic\.tap"
    _refused(rig, said, nics=(PlaneNic("tap0", "br0", 1500),))


def test_a_network_card_named_as_the_tunnel_is_left_alone(rig: Rig) -> None:
    """As found: its MTU and IPv6 were changed, and everything it received was dropped."""
    word = Path("/proc/sys/net/ipv6/conf/up0/disable_ipv6")
    word.write_text("0\n")
    said = r"up0 is there and is no tunnel of ours \(veth\): link\.device names a device"
    _refused(rig, said, link_device="up0")
    with pytest.raises(AttachError, match=said):
        ownership.require("t", ["tap0"], "up0", 4789)
    assert attached("up0") == {} and ownership.owner("up0") == ""
    assert word.read_text() == "0\n"
    word.write_text("1\n")


def test_a_network_card_named_as_the_tap_is_left_alone(rig: Rig) -> None:
    _refused(rig, r"up0 is there and is no tap of ours", nics=(PlaneNic("up0", "br1", 1500),))


@pytest.mark.parametrize(
    "made",
    [
        "type vxlan id 5 dstport 4790",
        "type vxlan external dstport 4790",
        "type vxlan external gbp dstport 4791",
        "type bridge",
    ],
)
def test_a_tunnel_of_others_is_left_alone(rig: Rig, made: str) -> None:
    _ip(f"link add vx9 {made}")
    try:
        _refused(rig, r"vx9 is there and is no tunnel of ours")
    finally:
        _ip("link del vx9")


def test_what_a_version_without_marks_made_is_taken_and_marked(rig: Rig) -> None:
    for device in DEVICES:
        netdev.set_alias(device, "")
    assert {ownership.owner(device) for device in DEVICES} == {""}
    asyncio.run(rig.plane.prepare())
    assert {ownership.owner(device) for device in DEVICES} == {"t"}


def test_the_vms_tunnel_is_made_anew_for_another_port() -> None:
    with Rig() as rig:
        spec = rig.plane._spec
        index = netdev.index_of("vx0")
        ownership.drop_outdated("t", {}, "vx0", spec.vxlan_port)
        assert netdev.index_of("vx0") == index, "it is as it should be"
        vxlan.create("vx9", 4790, 1500)
        ownership.mark("vx9", "t")
        ownership.drop_outdated("other", {}, "vx9", 4791)
        assert netdev.exists("vx9")
        ownership.drop_outdated("t", {}, "vx9", 4791)
        assert not netdev.exists("vx9")


def test_a_port_that_another_tunnel_has_is_told_with_its_owner(rig: Rig) -> None:
    """As found: `set up: Address already in use`."""
    _ip("link add flannel0 type vxlan id 5 dstport 4795")
    _ip("link set flannel0 up")
    try:
        said = r"UDP port 4795 is in use by the VXLAN device flannel0: set link\.vxlan-port"
        with pytest.raises(AttachError, match=said):
            vxlan.create("vx9", 4795, 1500)
        assert not netdev.exists("vx9"), "or it could not be made for another port"
    finally:
        _ip("link del flannel0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("0.0.0.0", 4795))
        with pytest.raises(AttachError, match=r"another program \(ss -ulpn sport = :4795\)"):
            vxlan.create("vx9", 4795, 1500)


def test_of_a_vm_that_is_forgotten_nothing_is_left_and_another_does_not_notice(rig: Rig) -> None:
    before, spec = _attached(), _spec(rig)
    plane = DataPlane.open(spec)
    asyncio.run(plane.prepare())
    plane.close()
    made = {"tapu", "vx9", "vx9-in", "vx9-out"}
    assert all(netdev.exists(device) for device in made)
    tap = tuntap.open_tap("tapu")
    try:
        with pytest.raises(AttachError, match="VM second runs here: its QEMU has tapu open"):
            removal.remove(spec)
    finally:
        os.close(tap)
    pins = pin_directory(spec.bpffs, "second")
    assert set(removal.remove(spec)) == made | {str(pins)}
    assert not any(netdev.exists(device) for device in made)
    assert not pins.exists()
    assert removal.remove(spec) == []
    assert _attached() == before
    assert {ownership.owner(device) for device in DEVICES} == {"t"}


def test_no_two_tunnels_share_a_delay_line() -> None:
    """As found: `colo-link-web1` and `colo-link-web2` did."""
    lines = [delay_line.names(name) for name in ("colo-link-web1", "colo-link-web2", "colo-link")]
    assert len({name for line in lines for name in line}) == 6
    assert all(len(name) <= 15 for line in lines for name in line)
    assert lines[2] == ("colo-link-in", "colo-link-out"), "as it was"
