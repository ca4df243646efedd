# SPDX-License-Identifier: GPL-2.0-only
"""The link over IPv6: the same frames, out and in, from and to nobody but the peer."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
from scapy.layers.inet import TCP

from colo_ebpf.datapath.net import netdev
from colo_ebpf.lab.bed import IPV4, IPV6, LINK, Ends, packet_socket, take_address
from colo_ebpf.model import Mode, Phase, VmRole
from tests.bpf.frames import payload, request, segment
from tests.bpf.hosts import Host, TwoHosts
from tests.bpf.rig import Rig, established
from tests.capabilities import require

_UDP = 17


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf")


def test_the_svms_frame_lets_the_pvms_leave_and_the_other_way_round() -> None:
    with established(ends=IPV6) as rig:
        rig.from_peer(segment(1001, b"hello", ack=5001), 1)
        rig.from_vm(segment(1001, b"hello", ack=5001))
        assert payload(rig.to_client()) == b"hello"
        rig.from_vm(segment(1006, b" again", ack=5001))
        assert rig.to_client() == []
        rig.from_peer(segment(1006, b" again", ack=5001), 1)
        assert payload(rig.to_client()) == b" again"


def test_a_clients_frame_goes_to_the_peer_with_its_epoch() -> None:
    with Rig(ends=IPV6) as rig:
        rig.pair(9)
        rig.from_client(request(5000, b"GET"))
        (frame,) = rig.to_vm()
        assert [(tag, bytes(clone)) for tag, clone in rig.to_peer()] == [(9, bytes(frame))]


def test_a_beacon_is_as_large_as_the_largest_frame() -> None:
    with Rig(ends=IPV6) as rig:
        rig.pair(9)
        rig.plane.beacon()
        assert [(tag, len(frame)) for tag, frame in rig.to_peer()] == [(9, 1514)] * 2


def test_a_secondary_delivers_what_comes_and_says_what_its_vm_says() -> None:
    with Rig(VmRole.SECONDARY, ends=IPV6) as rig:
        rig.pair(3, Mode.SECONDARY)
        rig.from_peer(request(5000, flags="S"), 3)
        assert [frame[TCP].seq for frame in rig.to_vm()] == [5000]
        rig.from_vm(segment(1000, ack=5001, flags="SA"))
        assert [tag for tag, frame in rig.to_peer() if TCP in frame] == [3]


@pytest.mark.parametrize(
    ("ends", "other"),
    [
        (IPV4, "198.51.100.3"),
        (IPV6, "2001:db8::3"),
        (IPV6, "2001:db8:0:0:1::2"),  # each word of the address counts
        (IPV6, "2001:db8:0:1::2"),
        (IPV6, "2001:db9::2"),
    ],
)
@pytest.mark.parametrize("role", list(VmRole))
def test_frames_of_another_source_are_not_heard(role: VmRole, ends: Ends, other: str) -> None:
    program, mode = {
        VmRole.PRIMARY: ("cmp-svm", Mode.PRIMARY),
        VmRole.SECONDARY: ("mir-link", Mode.SECONDARY),
    }[role]
    with Rig(role, ends=ends) as rig:
        rig.pair(3, mode)
        assert rig.to_client() == []  # the first beacon waits until its host knows the neighbour
        heard = rig.plane.link_heard_ns()
        rig.from_elsewhere(replace(ends, peer=other), request(5000, flags="S"), 3)
        assert (rig.to_client(), rig.to_vm()) == ([], [])
        assert rig.count(program, "drop", "not-ours") == 1
        assert rig.plane.link_heard_ns() == heard


def test_frames_over_ipv4_are_not_of_a_pairing_over_ipv6() -> None:
    with Rig(ends=IPV6) as rig:
        rig.pair(3)
        take_address(LINK, IPV4.local, IPV4.prefix_length)
        rig.from_elsewhere(IPV4, segment(1, b"x"), 3)
        assert rig.to_client() == []
        assert rig.count("cmp-svm", "drop", "not-ours") == 1


@pytest.fixture(params=[IPV4, IPV6], ids=["ipv4", "ipv6"])
def two(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    with TwoHosts(request.param) as hosts:
        yield hosts


def _paired(two: TwoHosts) -> tuple[Host, Host]:
    primary, secondary = two.hosts
    two.pair(primary, secondary, 5)
    for host, mode in ((primary, Mode.PRIMARY), (secondary, Mode.SECONDARY)):
        host.plane.set_turn(1, Phase.OPEN)
        host.plane.set_mode(mode)
    return primary, secondary


def _drop(host: Host, address: str) -> None:
    argv = ["ip", "address", "del", f"{address}/{host.prefix_length}", "dev", LINK]
    subprocess.run(argv, check=True, timeout=10)


def test_frames_come_from_the_configured_address_whatever_else_the_link_has(two: TwoHosts) -> None:
    """The kernel would choose the address that has the most in common with the peer's."""
    primary, secondary = _paired(two)
    other = primary.address[:-1] + "3"
    with primary.inside():
        _drop(primary, primary.address)
        primary.take_address(other)
        primary.take_address(primary.address)
    try:
        primary.beacon()
        two.settle()
        assert secondary.plane.link_heard_ns() > 0
    finally:
        with primary.inside():
            _drop(primary, other)
            primary.take_address(primary.address)


def test_the_tunnel_has_no_checksum_of_its_own(two: TwoHosts) -> None:
    """What is inside has one, and over IPv4 there never was another: none has to be made."""
    primary, secondary = _paired(two)
    with secondary.inside():
        wire = packet_socket(LINK)
    primary.beacon()
    two.settle()
    assert secondary.plane.link_heard_ns() > 0
    found = [sum_ for sum_ in map(_outer_sum, _all_of(wire)) if sum_ is not None]
    wire.close()
    assert found == [0, 0]


def test_the_route_to_the_peer_acknowledges_at_once(two: TwoHosts) -> None:
    primary, secondary = two.hosts
    with primary.inside():
        for _ in range(2):
            netdev.set_quickack(secondary.address, primary.address)
        argv = ["ip", "route", "get", secondary.address]
        route = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout
    assert "quickack 1" in route
    assert f"dev {LINK}" in route
    assert f"src {primary.address}" in route


def _all_of(wire: socket.socket) -> list[bytes]:
    wire.setblocking(False)
    frames = []
    while True:
        try:
            frames.append(wire.recv(4096))
        except BlockingIOError:
            return frames


def _outer_sum(frame: bytes) -> int | None:
    """UDP checksum of a frame of the tunnel."""
    ipv6 = frame[12:14] == b"\x86\xdd"
    protocol, udp = (frame[20], 54) if ipv6 else (frame[23], 34)
    if protocol != _UDP or frame[udp + 2 : udp + 4] != struct.pack("!H", 4789):
        return None
    return int(struct.unpack_from("!H", frame, udp + 6)[0])
