# SPDX-License-Identifier: GPL-2.0-only
"""Frames that are cut short, lie about their lengths or are absurd: counted, and never let out."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from colo_ebpf.lab.frames import CLIENT, VM
from colo_ebpf.model import Mode, VmRole
from tests.bpf.frames import request, segment
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig

VM6, CLIENT6 = "2001:db8::10", "2001:db8::1"
_ETHER = Ether(src=VM_MAC, dst=CLIENT_MAC)
_OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 2)), ("WScale", 7)]
FRAMES: dict[str, Packet] = {
    "tcp": segment(1001, b"hello world", ack=5001),
    "syn": segment(1000, ack=5001, flags="SA", options=_OPTIONS),
    "udp": _ETHER / IP(src=VM, dst=CLIENT) / UDP(sport=7, dport=9) / b"datagram",
    "icmp": _ETHER / IP(src=VM, dst=CLIENT) / ICMP(type=0) / b"echo",
    "error": _ETHER / IP(src=VM, dst=CLIENT) / ICMP(type=3) / bytes(request(5, ack=6))[14:],
    "options": _ETHER / IP(src=VM, dst=CLIENT, options=[b"\x94\x04\0\0"]) / TCP(sport=80) / b"x",
    "tcp6": _ETHER / IPv6(src=VM6, dst=CLIENT6) / TCP(sport=80, flags="A") / b"hello",
    "udp6": _ETHER / IPv6(src=VM6, dst=CLIENT6) / UDP(sport=7, dport=9) / b"x",
    "icmp6": _ETHER / IPv6(src=VM6, dst=CLIENT6) / ICMPv6EchoRequest(data=b"x"),
    "hop6": _ETHER / IPv6(src=VM6, dst=CLIENT6) / IPv6ExtHdrHopByHop() / TCP(flags="A") / b"x",
    "fragment6": _ETHER / IPv6(src=VM6, dst=CLIENT6) / IPv6ExtHdrFragment(nh=6, m=1) / bytes(32),
    "tagged": _ETHER / Dot1Q(vlan=7) / Dot1Q(vlan=8) / IP(src=VM, dst=CLIENT) / UDP() / b"x",
}


@pytest.fixture(params=["pvm", "client", "svm"])
def side(request: pytest.FixtureRequest) -> Iterator[tuple[Rig, str]]:
    """A protected VM, or its replica, and the program its frames meet."""
    role = VmRole.SECONDARY if request.param == "svm" else VmRole.PRIMARY
    program = {"pvm": "colo_cmp_pvm", "client": "colo_mir_cli", "svm": "colo_mir_svm"}
    with Rig(role) as rig:
        rig.pair(mode=Mode.PRIMARY if role is VmRole.PRIMARY else Mode.SECONDARY)
        yield rig, program[request.param]


def _total(rig: Rig, program: str) -> int:
    name = program.removeprefix("colo_").replace("_", "-")
    return sum(row.packets for row in rig.plane.counters() if row.program == name)


def _run(rig: Rig, program: str, frame: bytes) -> int:
    """The program's action; exactly one way out was counted.

    BPF_PROG_TEST_RUN refuses frames that are too short for their network header: these come over
    the wire, and what a client's side would see of them is looked at there.
    """
    before = _total(rig, program)
    action = _sent(rig, program, frame)
    assert _total(rig, program) == before + 1
    return action


def _sent(rig: Rig, program: str, frame: bytes) -> int:
    network = 54 if frame[12:14] == b"\x86\xdd" else 34
    if len(frame) >= network:
        action = rig.run(program, frame).retval
    else:
        (rig.to_first_nic if program == "colo_mir_cli" else rig.from_vm_raw)(frame)
        action = 2
    return action


@pytest.mark.parametrize("kind", FRAMES)
def test_every_truncation_is_counted_and_nothing_of_it_leaves(
    side: tuple[Rig, str], kind: str
) -> None:
    rig, program = side
    whole = bytes(FRAMES[kind])
    shortest = 22 if kind == "tagged" else 15  # the kernel takes no shorter tag
    for length in range(shortest, len(whole)):
        action = _run(rig, program, whole[:length])
        if program == "colo_cmp_pvm":
            assert action == 2, f"{kind} of {length} bytes left"
    assert rig.to_client() == []


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "udp", "udp6", "icmp", "options"])
def test_a_frame_cut_behind_its_network_header_is_malformed(kind: str) -> None:
    with Rig() as rig:
        rig.pair()
        whole = bytes(FRAMES[kind])
        for length in range(35, len(whole)):
            _run(rig, "colo_cmp_pvm", whole[:length])
        assert rig.count("cmp-pvm", "drop", "malformed") == len(whole) - 35


@pytest.mark.parametrize(
    ("kind", "offset", "values"),
    [
        ("tcp", 14, [0x40, 0x44, 0x4F, 0x55, 0x65]),  # version, header length
        ("tcp", 16, [0xFF]),  # total length
        ("tcp", 17, [0, 19, 39]),
        ("tcp", 46, [0x00, 0x40, 0xF0]),  # data offset
        ("tcp6", 14, [0x40, 0x70]),
        ("tcp6", 18, [0xFF]),
        ("udp", 38, [0xFF]),  # UDP's own length
        ("hop6", 55, [0xFF]),  # length of the extension header
    ],
)
def test_a_length_that_lies_is_malformed(kind: str, offset: int, values: list[int]) -> None:
    with Rig() as rig:
        rig.pair()
        for value in values:
            frame = bytearray(bytes(FRAMES[kind]))
            frame[offset] = value
            rig.from_vm_raw(bytes(frame))
        assert rig.count("cmp-pvm", "drop", "malformed") == len(values)
        assert rig.to_client() == []


def test_ethernet_padding_is_not_payload() -> None:
    with Rig() as rig:
        rig.pair()
        ack = bytes(segment(1001, ack=5001)) + b"\xaa" * 6
        rig.from_vm_raw(ack)
        assert rig.count("cmp-pvm", "hold", "ack-floor") == 1


def test_absurd_options_end_the_search_for_options() -> None:
    rng = random.Random(1)
    with Rig(VmRole.SECONDARY) as rig:
        rig.pair(mode=Mode.SECONDARY)
        for _ in range(500):
            options = rng.randbytes(40)
            frame = bytearray(bytes(segment(1000, flags=rng.choice(["S", "A", "SA"]))) + options)
            frame[46] = 0xF0
            struct.pack_into("!H", frame, 16, len(frame) - 14)
            rig.run("colo_mir_svm", bytes(frame))
        assert _total(rig, "colo_mir_svm") == 500


def test_a_chain_of_extension_headers_ends_somewhere() -> None:
    with Rig() as rig:
        rig.pair()
        for links in range(1, 40):
            chain = b"\x3c\x00" + bytes(6)
            body = chain * links + b"\x06\x00" + bytes(6) + bytes(20)
            ip = struct.pack("!IHBB", 6 << 28, len(body), 60, 64) + bytes(32)
            frame = bytes(_ETHER)[:12] + b"\x86\xdd" + ip + body
            rig.from_vm_raw(frame)
        assert rig.to_client() == []
        assert _total(rig, "colo_cmp_pvm") == 39


def test_a_wrong_checksum_is_never_compared_away() -> None:
    """Checksums are each VM's own affair (they may be left to the NIC): bytes are compared."""
    with Rig() as rig:
        rig.pair()
        first, other = FRAMES["udp"].copy(), FRAMES["udp"].copy()
        first[UDP].chksum, other[UDP].chksum = 0x1234, 0x1235
        rig.from_vm(first)
        rig.from_peer(other, 1)
        (out,) = rig.to_client()
        assert bytes(out) == bytes(FRAMES["udp"]), "it leaves with a right one"


@settings(
    max_examples=3000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(
    kind=st.sampled_from(sorted(FRAMES)),
    changes=st.lists(st.tuples(st.integers(12, 120), st.integers(0, 255)), max_size=6),
    length=st.integers(22, 200),
)
def _garbage_of(rig: Rig, kind: str, changes: list[tuple[int, int]], length: int) -> None:
    frame = bytearray(bytes(FRAMES[kind]))
    for at, value in changes:
        if at < len(frame):
            frame[at] = value
    assert _sent(rig, "colo_cmp_pvm", bytes(frame[:length])) == 2


def test_no_garbage_leaves() -> None:
    """Anything may be wrong in a frame of the PVM: without the SVM's it does not pass."""
    with Rig() as rig:
        rig.plane.set_mode(Mode.PAIRING)
        _garbage_of(rig)
        assert _total(rig, "colo_cmp_pvm") >= 3000
        assert rig.count("cmp-pvm", "pass", "released") == 0
