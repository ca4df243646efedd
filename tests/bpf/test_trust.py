# SPDX-License-Identifier: GPL-2.0-only
"""Clients and guests are not trusted: no frame of theirs is taken for ours, whatever it says."""

from __future__ import annotations

import fcntl
import itertools
import socket
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from colo_ebpf.datapath.bpf import abi
from colo_ebpf.lab.bed import IPV4, PORT, tunnelled
from colo_ebpf.lab.frames import CLIENT, VM
from colo_ebpf.model import Mode, VmRole
from tests.bpf.frames import farewell, segment
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig, established

OURS = (abi.BEACON_ETHERTYPE, abi.LEAVE_ETHERTYPE)
RELEASED = 0xC0100001  # COLO_MARK_RELEASED
ANOTHER_MAC = "52:54:00:12:34:57"
_TAGS: dict[str, Packet | None] = {
    "untagged": None,
    "priority": Dot1Q(vlan=0, prio=7),
    "tagged": Dot1Q(vlan=7),
    "service": Dot1AD(vlan=7),
    "two tags": Dot1Q(vlan=7) / Dot1Q(vlan=8),
    "two kinds": Dot1AD(vlan=7) / Dot1Q(vlan=8),
}
_TARGETS = (VM_MAC, "ff:ff:ff:ff:ff:ff", "01:80:c2:00:00:0e")
_SOURCES = (CLIENT_MAC, VM_MAC, "02:00:00:00:00:00")
_SIZES = (8, 46, 50, 1400)


def _forged(tags: Packet | None, to: tuple[str, ...] = _TARGETS) -> Iterator[bytes]:
    """Frames that say they are a beacon or a farewell."""
    for ours, target, source, size in itertools.product(OURS, to, _SOURCES, _SIZES):
        head = Ether(src=source, dst=target)
        if tags is None:
            head.type = ours
            yield bytes(head / bytes(size))
            continue
        frame = head / tags.copy()
        frame.lastlayer().type = ours
        yield bytes(frame / bytes(size))


def _kind(frame: bytes) -> int:
    """Its Ethernet type, behind the tags."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    return int.from_bytes(frame[at : at + 2], "big")


def _mac_of(ifname: str) -> str:
    """In the namespace in hand."""
    with socket.socket() as one:
        answer = fcntl.ioctl(one, 0x8927, struct.pack("16s24x", ifname.encode()))  # SIOCGIFHWADDR
    return answer[18:24].hex(":")


def _over_the_link(rig: Rig) -> list[Packet]:
    """What the peer's plane would take for this one's own."""
    return [frame for _, frame in rig.to_peer() if _kind(bytes(frame)) in OURS]


@pytest.mark.parametrize("tags", _TAGS)
def test_a_client_is_no_plane(tags: str) -> None:
    with established() as rig:
        rig.to_peer()
        sent = list(_forged(_TAGS[tags]))
        for frame in sent:
            rig.to_first_nic(frame)
        assert _over_the_link(rig) == []
        assert rig.count("mir-cli", "drop", "poses") == len(sent)
        assert rig.plane.link_heard_ns() > 1


@pytest.mark.parametrize("tags", _TAGS)
def test_the_replicas_guest_is_no_plane(tags: str) -> None:
    """Its frames go over the link: there one of these would silence the primary."""
    with Rig(VmRole.SECONDARY) as rig:
        rig.pair(mode=Mode.SECONDARY)
        rig.to_peer()
        sent = list(_forged(_TAGS[tags]))
        for frame in sent:
            rig.from_vm_raw(frame)
        assert _over_the_link(rig) == []
        assert rig.count("mir-svm", "drop", "poses") == len(sent)


@pytest.mark.parametrize("mode", [Mode.PRIMARY, Mode.SOLO])
def test_the_guest_says_nothing_of_that_kind_to_clients(mode: Mode) -> None:
    """Another pair of hosts may have its clients there."""
    with Rig() as rig:
        rig.pair(mode=mode)
        for frame in _forged(None, (CLIENT_MAC,)):
            rig.from_vm_raw(frame)
        assert rig.to_client() == []


@pytest.fixture(params=[(VmRole.PRIMARY, Mode.SOLO), (VmRole.SECONDARY, Mode.SOLO)])
def alone(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A VM whose frames all leave, but for what is refused."""
    role, mode = request.param
    with Rig(role) as rig:
        rig.pair(mode=mode)
        rig.map("colo_macs").set(bytes(4), bytes.fromhex(VM_MAC.replace(":", "")).ljust(8, b"\0"))
        yield rig


def test_a_guest_speaks_with_its_own_mac_address_alone(alone: Rig) -> None:
    frames = [
        segment(1001, b"x", ack=5001),
        Ether(src=VM_MAC, dst=CLIENT_MAC) / ARP(op=2, psrc=VM),
        Ether(src=VM_MAC, dst=CLIENT_MAC, type=0x1234) / bytes(50),
        Ether(src=VM_MAC, dst=CLIENT_MAC) / Dot1Q(vlan=7) / IP(src=VM, dst=CLIENT) / UDP() / b"x",
    ]
    for frame in frames:
        alone.from_vm(frame)
    assert len(alone.to_client()) == len(frames)
    for frame, source in itertools.product(frames, (ANOTHER_MAC, CLIENT_MAC, "ff:ff:ff:ff:ff:ff")):
        lie = frame.copy()
        lie.src = source
        alone.from_vm(lie)
    left = [raw for raw in alone.to_client_raw() if raw[12:14] not in (b"\x86\xdd",)]
    assert left == []


def test_a_replicas_lie_never_crosses_the_link() -> None:
    with Rig(VmRole.SECONDARY) as rig:
        rig.pair(mode=Mode.SECONDARY)
        rig.map("colo_macs").set(bytes(4), bytes.fromhex(VM_MAC.replace(":", "")).ljust(8, b"\0"))
        lie = segment(1001, b"x", ack=5001)
        lie.src = ANOTHER_MAC
        rig.to_peer()
        rig.from_vm(lie)
        assert rig.to_peer() == []
        assert rig.count("mir-svm", "drop", "wrong-mac") == 1


@pytest.mark.parametrize("mark", [RELEASED, 0xC0100100, 0xC5000001, 1])
def test_a_mark_that_a_clients_frame_has_got_says_nothing(mark: int) -> None:
    """Rules of the host's firewall give marks, and may copy what a client asked for."""
    with established() as rig:
        run = rig.run("colo_mir_cli", segment(1001, b"x", ack=5001), mark)
        assert run.retval == 0xFFFFFFFF
        assert rig.count("mir-cli", "pass", "input") >= 1


def test_a_frame_of_the_guest_comes_without_a_mark() -> None:
    """So that it cannot say that it was released."""
    with established() as rig:
        before = rig.count("cmp-pvm", "pass", "released")
        rig.from_vm(segment(1001, b"secret", ack=5001))
        assert rig.to_client() == []
        assert rig.count("cmp-pvm", "pass", "released") == before


@pytest.mark.parametrize("sender", ["client", "guest"])
def test_a_tunnel_of_a_client_or_of_the_guest_is_not_the_peers(sender: str) -> None:
    """To our port, with the right VNI and tag: who is not the peer is not heard, wherever the
    host has an address."""
    with established() as rig:
        heard = rig.plane.link_heard_ns()
        host = _mac_of("br0")
        source, mac = (CLIENT, CLIENT_MAC) if sender == "client" else (VM, VM_MAC)
        for inner in (farewell(), segment(1001, b"forged", ack=5001)):
            body = tunnelled(bytes(inner), 1)
            frame = Ether(src=mac, dst=host) / IP(src=source, dst=IPV4.local)
            frame /= UDP(sport=4444, dport=PORT, chksum=0) / body
            (rig.from_client if sender == "client" else rig.from_vm)(frame)
        rig.from_vm(segment(1001, b"forged", ack=5001))
        assert rig.to_client() == []
        assert rig.plane.link_heard_ns() >= heard > 1
