# SPDX-License-Identifier: GPL-2.0-only
"""Room in the flow table: nothing is evicted, what has ended leaves, with and without a daemon."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import TCP
from scapy.packet import Packet

from colo_ebpf.clock import boot_ns
from colo_ebpf.datapath import sweep
from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.abi import FlowFlag
from colo_ebpf.model import Mode
from tests.bpf.frames import request, segment
from tests.bpf.rig import Rig, established
from tests.capabilities import require

FLOWS = 256
SECOND = 1_000_000_000
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
HALF_OPEN = 4 * SECOND  # in a crowded table


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf")


def _syns(count: int, first: int = 0, flags: str = "S") -> Iterator[bytes]:
    """A SYN of another client each: 10.0.0.0/8, any port."""
    frame = bytearray(bytes(request(1, ack=1, flags=flags)))
    for number in range(first, first + count):
        frame[26:30] = struct.pack("!I", 10 << 24 | number >> 4)
        frame[34:36] = struct.pack("!H", 1024 + (number & 15))
        yield bytes(frame)


def _change(rig: Rig, idle_ns: int, **fields: int) -> None:
    """All entries were last heard of so long ago, and hold these values."""
    rig.change_flows(seen_ns=boot_ns() - idle_ns, **fields)


def _sweep(rig: Rig) -> None:
    """The daemon goes once round all places."""
    begin_ns = boot_ns()
    for run in range(2 * FLOWS // 256 + 1):
        rig.plane.reap(begin_ns + run * sweep.REST_NS)


def _refused(rig: Rig) -> int:
    return rig.count("mir-cli", "drop", "table-full")


def _said(rig: Rig) -> list[tuple[int, bytes]]:
    return [(f[TCP].seq, bytes(f[TCP].payload)) for f in rig.to_client() if TCP in f]


@pytest.mark.parametrize(
    ("idle_ns", "fields", "goes"),
    [
        (2 * MINUTE, {"flags": FlowFlag.PVM_FIN}, True),
        (MINUTE // 2, {"flags": FlowFlag.PVM_FIN}, False),
        (2 * MINUTE, {"flags": FlowFlag.RESET}, True),
        (2 * MINUTE, {"flags": FlowFlag.ANCHORED}, False),
        (2 * HOUR, {"flags": FlowFlag.ANCHORED}, True),
        (2 * MINUTE, {"c_known": 0}, True),
        (MINUTE // 2, {"c_known": 0}, False),
        (2 * HOUR, {"flags": FlowFlag.RESET, "held": 1}, False),
        (2 * HOUR, {"flags": FlowFlag.RESET, "ack_slot": 3}, False),
        (2 * HOUR, {"flags": FlowFlag.RESET, "lock": 1}, False),
        (-SECOND, {"flags": FlowFlag.RESET}, False),
    ],
)
def test_which_entries_go(idle_ns: int, fields: dict[str, int], goes: bool) -> None:
    with Rig() as rig:
        rig.pair()
        rig.from_client(request(1, flags="S"))
        _change(rig, idle_ns, **{"c_known": 1, **fields})
        _sweep(rig)
        assert len(rig.flows()) == (not goes)
        assert rig.plane.live()["flows"] == (not goes)
        assert rig.count("age", "drop", "ended") == goes


def test_a_crowded_table_does_not_wait_for_idle_ones() -> None:
    with Rig() as rig:
        rig.pair()
        rig.run_many("colo_mir_cli", _syns(FLOWS * 3 // 4 - 1))
        _change(rig, 2 * MINUTE, c_known=1)
        _sweep(rig)
        assert rig.count("age", "drop", "ended") == 0
        rig.run_many("colo_mir_cli", _syns(1, FLOWS))
        _sweep(rig)
        assert rig.count("age", "drop", "ended") > 0, "three quarters are in use"


@pytest.mark.parametrize(("entries", "rests"), [(1, True), (FLOWS // 8, False)])
def test_a_table_with_little_in_it_is_swept_now_and_then(entries: int, rests: bool) -> None:
    with Rig() as rig:
        rig.pair()
        rig.run_many("colo_mir_cli", _syns(entries))
        begin_ns = boot_ns()
        rig.plane.reap(begin_ns)
        _change(rig, 2 * MINUTE, c_known=0)
        for _ in range(2):
            rig.plane.reap(begin_ns + sweep.REST_NS - 1)
        assert (rig.count("age", "drop", "ended") == 0) == rests
        for later in range(1, 4):
            rig.plane.reap(begin_ns + later * sweep.REST_NS)
        assert rig.count("age", "drop", "ended") == entries


def test_c4_without_a_daemon_ended_entries_make_room() -> None:
    """The table is full of connections that are over, and nobody sweeps it."""
    with Rig() as rig:
        rig.pair()
        rig.run_many("colo_mir_cli", _syns(2 * FLOWS))
        assert len(rig.flows()) == FLOWS
        refused = _refused(rig)
        rig.run_many("colo_mir_cli", _syns(100, FLOWS * 4))
        assert _refused(rig) == refused + 100, "they may live"
        _change(rig, 2 * MINUTE, flags=int(FlowFlag.PVM_FIN))
        refused = _refused(rig)
        rig.run_many("colo_mir_cli", _syns(100, FLOWS * 6))
        assert _refused(rig) - refused < 20, "some of eight places had one that is over"
        assert len(rig.flows()) <= FLOWS
        assert rig.plane.live()["flows"] == len(rig.flows())


def test_memory_follows_the_connections() -> None:
    """Kernels before 6.4 tell what a full table would take."""
    with Rig() as rig:
        rig.pair()
        before = _memory(rig)
        rig.run_many("colo_mir_cli", _syns(100))
        assert _memory(rig) - before >= 100 * ctypes.sizeof(abi.Flow)
        _change(rig, 2 * MINUTE, c_known=0)
        _sweep(rig)
        assert (rig.flows(), _memory(rig)) == ({}, before)


def test_an_entry_used_again_is_not_taken_for_the_old_one() -> None:
    """Another CPU may have looked it up just before it changed hands."""
    with established() as rig:
        _change(rig, 0, owner=12345)
        rig.from_vm(segment(1001, b"x", ack=5001))
        rig.from_peer(segment(1001, b"x", ack=5001), 1)
        assert rig.count("cmp-pvm", "drop", "busy") == 1
        assert rig.count("cmp-svm", "drop", "busy") == 1
        assert rig.to_client() == []
        assert [flow.lock for flow in rig.flows().values()] == [0]


def test_the_guests_own_connections_find_room_too() -> None:
    """And each VM's SYN may be the first to ask for it."""
    with Rig() as rig:
        rig.pair()
        for number, send in enumerate((rig.from_vm, lambda f: rig.from_peer(f, 1))):
            syn = segment(1000, flags="S")
            syn[TCP].dport = 5000 + number
            send(syn)
            rig.to_client()
            assert len(rig.flows()) == number + 1
        rig.run_many("colo_mir_cli", _syns(2 * FLOWS))
        syn[TCP].dport = 6000
        rig.from_vm(syn)
        rig.from_peer(syn, 1)
        assert rig.count("cmp-pvm", "drop", "table-full") == 1
        assert rig.count("cmp-svm", "drop", "no-flow") == 1
        rig.plane.set_mode(Mode.SOLO)
        rig.from_vm(syn)
        assert len(rig.to_client()) == 1, "alone, nothing needs an entry"


def test_c4_a_flood_of_a_million_tuples() -> None:
    """What is established goes on, both VMs are spared, memory stays what it is."""
    with established() as rig:
        rig.from_client(request(5001, ack=1001))
        begun_ns = boot_ns()
        rig.run_many("colo_mir_cli", _syns(1_000_000))
        times = (boot_ns() - begun_ns) // HALF_OPEN + 1  # that the table may have been filled
        assert _refused(rig) >= 1_000_000 - FLOWS * times
        _change(rig, 0)
        assert len(rig.flows()) == rig.plane.live()["flows"] <= FLOWS
        rig.to_peer()
        stranger = request(9, flags="S")
        stranger[TCP].sport = 999
        rig.from_client(stranger)
        assert _tcp_to_peer(rig) == []
        assert [f for f in rig.to_vm() if TCP in f and f[TCP].sport == 999] == []
        rig.from_client(request(7, flags="S"))
        known = [p for p in _tcp_to_peer(rig) if p.flags == "S" and p.seq == 7]
        assert known, "a known tuple is not refused"
        unknown = segment(1, b"answer")
        unknown[TCP].dport = 998
        rig.from_vm(unknown)
        assert rig.count("cmp-pvm", "drop", "table-full") == 1
        assert rig.to_client() == []
        rig.from_vm(segment(1001, b"on", ack=5001))
        rig.from_peer(segment(1001, b"on", ack=5001), 1)
        assert _said(rig) == [(1001, b"on")]


def _tcp_to_peer(rig: Rig) -> list[Packet]:
    return [frame[TCP] for _, frame in rig.to_peer() if TCP in frame]


def test_a_million_connections() -> None:
    """The largest table there may be, nearly as full as it gets before it clears itself of what is
    idle; the first and the last are compared."""
    count = 780_000
    rig = Rig(flows=1 << 20)
    try:
        with rig:
            rig.pair()
            before = _memory(rig)
            for at in range(0, count, count // 10):
                for flags in ("S", "A"):
                    rig.run_many("colo_mir_cli", _syns(count // 10, at, flags))
                rig.to_peer()
            assert rig.plane.live()["flows"] == count
            assert _refused(rig) == 0
            for number in (0, count - 1):
                _exchange(rig, number)
            assert _memory(rig) - before < count * 1.1 * ctypes.sizeof(abi.Flow)
    finally:
        rig.close()


def _exchange(rig: Rig, number: int) -> None:
    """Client `number` is answered, by both VMs."""
    (syn,) = _syns(1, number)
    address, port = ".".join(map(str, syn[26:30])), int.from_bytes(syn[34:36], "big")
    frames = [
        segment(1000, ack=2, flags="SA", options=[("WScale", 2)]),
        segment(1001, b"hello", ack=2),
    ]
    for frame in frames:
        frame.payload.dst, frame[TCP].dport = address, port
        rig.from_vm(frame)
        rig.from_peer(frame, 1)
    out = [f[TCP].flags for f in rig.to_client() if TCP in f and f[TCP].dport == port]
    assert out == ["SA", "A"]


def _memory(rig: Rig) -> int:
    """What the kernel says the flow table takes (fdinfo's memlock)."""
    fd = rig.map("colo_flows").fd
    with open(f"/proc/self/fdinfo/{fd}") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    return int(lines["memlock"])
