# SPDX-License-Identifier: GPL-2.0-only
"""A host that leaves a pair says so over the link: the other plane is silent at once.

Its daemon may hang while VM and plane go on. Until the link's timeout they would repeat what may
be repeated, and a switch would send clients back to them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.l2 import ARP, Ether

from colo_ebpf.lab.bed import IPV4, IPV6
from colo_ebpf.model import Mode, Phase
from tests.bpf.hosts import Host, TwoHosts
from tests.bpf.rig import CLIENT_MAC, VM_MAC
from tests.capabilities import require

_ARP = bytes(Ether(src=VM_MAC, dst=CLIENT_MAC) / ARP(op=2, psrc="192.0.2.1", pdst="192.0.2.2"))


@pytest.fixture(params=[IPV4, IPV6], ids=["ipv4", "ipv6"])
def two(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    require("root", "bpf")
    with TwoHosts(request.param) as hosts:
        yield hosts


def _paired(two: TwoHosts) -> tuple[Host, Host]:
    primary, secondary = two.hosts
    two.pair(primary, secondary, 5)
    for host, mode in ((primary, Mode.PRIMARY), (secondary, Mode.SECONDARY)):
        host.plane.set_turn(1, Phase.OPEN)
        host.plane.set_mode(mode)
        host.beacon()
    two.settle()
    return primary, secondary


def _says(two: TwoHosts, host: Host) -> list[bytes]:
    host.vm_sends(0, _ARP)
    return [frame for _, frame in two.settle()]


def test_the_old_primarys_plane_is_silent_at_once(two: TwoHosts) -> None:
    primary, secondary = _paired(two)
    assert _says(two, primary) == [_ARP]
    with secondary.inside():
        secondary.plane.set_pairing(None)
    two.settle()
    assert primary.plane.link_heard_ns() == 0
    assert _says(two, primary) == []


def test_who_pairs_anew_is_heard_again(two: TwoHosts) -> None:
    primary, secondary = _paired(two)
    with secondary.inside():
        secondary.plane.set_pairing(None)
        two.pair(primary, secondary, 6)
        secondary.plane.beacon()
    two.settle()
    assert _says(two, primary) == [_ARP]


@pytest.mark.parametrize("mode", [Mode.SOLO, Mode.WITHHOLD])
def test_who_has_left_says_nothing_more(two: TwoHosts, mode: Mode) -> None:
    primary, secondary = _paired(two)
    with secondary.inside():
        secondary.plane.set_pairing(None)
        secondary.plane.set_mode(mode)
        secondary.plane.beacon()
    two.settle()
    assert primary.plane.link_heard_ns() == 0
