# SPDX-License-Identifier: GPL-2.0-only
"""A table: what the shipped programs do with a frame, and under which reason they count it.

Each row: reason, program, verdict, mode, what happened before, the frame. Frames of VM and of its
clients go through BPF_PROG_TEST_RUN, so that the program's action and the frame it leaves are
seen to the byte; frames of the peer come over a real VXLAN link, without which they have no
epoch.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Padding

from colo_ebpf.clock import boot_ns
from colo_ebpf.datapath import sweep
from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.abi import Reason
from colo_ebpf.datapath.bpf.syscalls import RawMap
from colo_ebpf.datapath.net import netdev
from colo_ebpf.model import Mode, Phase, VmRole
from tests.bpf.frames import beacon, datagram, farewell, request, segment
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig

PASS, DROP, LINK = 0xFFFFFFFF, 2, 7  # TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
CARRIER = 0xC0100100  # COLO_MARK_CARRIER, of the first NIC
HELLO = segment(1001, b"hello", ack=5001)
HALF = segment(1001, b"hell")
HELLO_AND_MORE = segment(1001, b"hello, world", ack=5001)
_ARP = Ether(src=VM_MAC, dst=CLIENT_MAC) / ARP(op=2, psrc="192.0.2.10")
OWN_TYPE = Ether(src=VM_MAC, dst=CLIENT_MAC, type=abi.BEACON_ETHERTYPE) / bytes(50)
Act = Callable[[Rig], None]


def nothing(_rig: Rig) -> None:
    """No history."""


def connected(rig: Rig) -> None:
    """Both VMs have accepted a connection: next is 1001, the floor 5001."""
    rig.from_vm(segment(1000, ack=5001, flags="SA", options=[("WScale", 2)]))
    rig.from_peer(segment(71000, ack=5001, flags="SA", options=[("WScale", 2)]), 1)


def after(*acts: Act) -> Act:
    """One after the other."""

    def run(rig: Rig) -> None:
        for act in acts:
            act(rig)

    return run


def vm(frame: Packet) -> Act:
    """The VM has sent."""
    return lambda rig: rig.from_vm(frame)


def peer(frame: Packet, tag: int = 1) -> Act:
    """The peer has sent."""
    return lambda rig: rig.from_peer(frame, tag)


def turn(epoch: int, phase: Phase = Phase.TURNING) -> Act:
    """The control plane wrote the cell."""
    return lambda rig: rig.plane.set_turn(epoch, phase)


def mode(wanted: Mode) -> Act:
    """The control plane wrote the mode."""
    return lambda rig: rig.plane.set_mode(wanted)


def gone(rig: Rig) -> None:
    """The client has reset the connection."""
    rig.to_first_nic(bytes(request(5001, flags="R")))


def another_mac(rig: Rig) -> None:
    """The guest is to speak with another address than it does."""
    rig.map("colo_macs").set(bytes(4), bytes.fromhex("525400123457").ljust(8, b"\0"))


def unpaired(rig: Rig) -> None:
    """No peer."""
    rig.plane.set_pairing(None)


def silent(rig: Rig) -> None:
    """The link was not heard."""
    rig.silence()


def unconfigured(rig: Rig) -> None:
    """As a map is after loading."""
    rig.map("colo_conf").set(b"\0" * 4, bytes(abi.Conf()))


def full_store(rig: Rig) -> None:
    """Every slot holds a datagram."""
    for ident in range(1024):
        rig.run("colo_cmp_pvm", datagram(struct.pack("=I", ident)))


def full_table(rig: Rig) -> None:
    """As many connections as fit."""
    for port in range(256):
        frame = request(1, flags="S")
        frame[TCP].sport = 10000 + port
        rig.run("colo_mir_cli", frame)


def locked(rig: Rig) -> None:
    """Another CPU never gives the flow back."""
    rig.change_flows(lock=1)


def no_link(_rig: Rig) -> None:
    """The link's device is down."""
    netdev.set_down("vx0")


def no_tap(_rig: Rig) -> None:
    """The tap is down: it takes nothing."""
    netdev.set_down("tap0")


def offset(rig: Rig) -> None:
    """A takeover left the client's numbers 70000 behind the VM's."""
    key = abi.FlowKey()
    key.vm[2] = key.client[2] = 0xFFFF0000
    key.vm[3], key.client[3] = (
        struct.unpack("=I", bytes(map(int, address.split("."))))[0]
        for address in ("192.0.2.10", "192.0.2.1")
    )
    key.vm_port, key.client_port = 80 << 8, (4711 >> 8) | (4711 & 0xFF) << 8
    rig.plane.learn_offsets([bytes(key) + struct.pack("!II", 70000, 0)])


def large_udp(rig: Rig) -> None:
    """The VM leaves UDP segmentation to its NIC."""
    rig.from_vm_offloaded_udp(datagram(bytes(3000)), 1000)


def long_frame(rig: Rig) -> None:
    """The VM leaves the segmentation of 3000 bytes to its NIC."""
    rig.from_vm_offloaded(segment(1001, bytes(3000), ack=5001), 300)
    rig.await_line()


def beat(rig: Rig) -> None:
    """The control plane tells the peer that this plane is there."""
    rig.plane.beacon()


def leave(rig: Rig) -> None:
    """The control plane leaves the pairing."""
    rig.plane.set_pairing(None)


def taken_over(rig: Rig) -> None:
    """The secondary serves alone; the control plane repeats what its VM said."""
    rig.plane.keep_offsets(1)
    rig.plane.set_mode(Mode.SOLO)
    rig.plane.repeat()


def flushed(rig: Rig) -> None:
    """The control plane sends what a checkpoint contains."""
    rig.plane.flush()


def severed(rig: Rig) -> None:
    """The program cannot be called back (COLO_CALL_PVM)."""
    RawMap(rig.plane._code.maps["colo_calls"]).delete(struct.pack("=I", 2))


def mended(rig: Rig) -> None:
    """What `severed` and downed devices were before."""
    program = rig.plane.programs["colo_cmp_pvm"]
    calls = RawMap(rig.plane._code.maps["colo_calls"])
    calls.set(struct.pack("=I", 2), struct.pack("=I", program))
    netdev.set_up("vx0", 1500)
    netdev.set_up("tap0", 1500)


def aged(rig: Rig) -> None:
    """The one connection was reset; two minutes later the control plane sweeps the table."""
    flags = rig.flow().flags | abi.FlowFlag.RESET
    rig.change_flows(flags=flags, seen_ns=boot_ns() - 120_000_000_000)
    for run in range(2):
        rig.plane.reap(boot_ns() + run * sweep.REST_NS)


@dataclass(frozen=True, slots=True)
class Row:
    """`frame` is run by `program` unless that hears the link; None: `before` ends with the act."""

    reason: Reason
    program: str
    verdict: str
    mode: Mode
    before: Act
    frame: Packet | bytes | None
    out: Packet | None = None  # what the program leaves of it, if not the same
    mark: int = 0
    tag: int | None = None
    role: VmRole = VmRole.PRIMARY
    flow: dict[str, int] = field(default_factory=dict)  # of the connection, behind it
    held: int | None = None  # frames, behind it


P, S = Mode.PRIMARY, VmRole.SECONDARY
R = Reason
TABLE = [
    Row(R.SOLO, "cmp-pvm", "pass", Mode.SOLO, nothing, HELLO),
    Row(R.RELEASED, "cmp-pvm", "pass", P, nothing, HELLO, mark=0xC0100001),
    Row(
        R.VERIFIED,
        "cmp-pvm",
        "pass",
        P,
        after(connected, peer(HELLO)),
        HELLO,
        flow={"verified": 1006, "floor": 5001, "bounds": 0},
        held=0,
    ),
    Row(
        R.VERIFIED,
        "cmp-pvm",
        "pass",
        P,
        after(connected, peer(HELLO)),
        segment(1001, b"hello", ack=5400, window=900),
        out=segment(1001, b"hello", ack=5001, window=999),
    ),
    Row(
        R.OLD,
        "cmp-pvm",
        "pass",
        P,
        after(connected, peer(HELLO), vm(HELLO)),
        HELLO,
        flow={"verified": 1006},
        held=0,
    ),
    Row(R.ACK, "cmp-pvm", "pass", P, connected, segment(1001, ack=5001)),
    Row(
        R.ACK_FLOOR,
        "cmp-pvm",
        "hold",
        P,
        connected,
        segment(1001, ack=5002),
        flow={"floor": 5001, "p_ack": 5002, "held": 0},
        held=1,
    ),
    Row(
        R.UNVERIFIED,
        "cmp-pvm",
        "hold",
        P,
        connected,
        HELLO,
        flow={"verified": 1001, "held": 1, "p_high": 1006},
        held=1,
    ),
    Row(
        R.TURNING,
        "cmp-pvm",
        "hold",
        P,
        after(connected, turn(1)),
        HELLO,
        flow={"verified": 1001, "anchor": 1001, "held": 1},
        held=1,
    ),
    Row(R.TURNING, "cmp-pvm", "hold", P, turn(1), _ARP),
    Row(R.ORDER, "cmp-pvm", "hold", P, after(connected, peer(HELLO), silent), HELLO),
    Row(
        R.HELD_AGAIN,
        "cmp-pvm",
        "drop",
        P,
        after(connected, vm(HELLO)),
        HELLO,
        flow={"held": 1},
        held=1,
    ),
    Row(
        R.GAP,
        "cmp-pvm",
        "drop",
        P,
        connected,
        segment(1010, b"x", ack=5001),
        flow={"verified": 1001, "p_high": 1011, "held": 0},
        held=0,
    ),
    Row(R.GAP, "cmp-svm", "drop", P, connected, segment(1010, b"x"), tag=1),
    Row(
        R.STORE_FULL,
        "cmp-pvm",
        "drop",
        P,
        after(connected, full_store),
        HELLO,
        flow={"held": 0, "p_high": 1006},
        held=1024,
    ),
    Row(R.TABLE_FULL, "mir-cli", "drop", P, full_table, request(1, flags="S")),
    Row(R.TABLE_FULL, "cmp-pvm", "drop", P, full_table, HELLO),
    Row(R.TABLE_FULL, "enter", "drop", P, after(severed, vm(HELLO)), None),
    Row(R.BUSY, "cmp-pvm", "drop", P, after(connected, locked), HELLO),
    Row(R.MALFORMED, "cmp-pvm", "drop", P, nothing, bytes(HELLO)[:50]),
    Row(R.LINK_SILENT, "cmp-pvm", "drop", P, silent, _ARP),
    Row(R.NEIGHBOUR, "cmp-pvm", "pass", P, nothing, _ARP),
    Row(R.WITHHELD, "cmp-pvm", "drop", Mode.WITHHOLD, nothing, HELLO),
    Row(R.TOO_BIG, "cmp-pvm", "drop", P, large_udp, None),
    Row(R.BEACON, "beacon", "link", P, beat, None),
    Row(R.FAREWELL, "farewell", "link", P, leave, None),
    Row(R.FAREWELL, "cmp-svm", "drop", P, nothing, farewell(), tag=1),
    Row(R.BEACON, "cmp-svm", "drop", P, nothing, beacon(), tag=1),
    Row(R.NOT_OURS, "cmp-svm", "drop", P, nothing, HELLO),
    Row(R.STALE_EPOCH, "cmp-svm", "drop", P, turn(2, Phase.OPEN), HELLO, tag=1),
    Row(R.EPOCH_AHEAD, "cmp-svm", "drop", P, nothing, HELLO, tag=2),
    Row(R.NO_FLOW, "cmp-svm", "drop", P, nothing, HELLO, tag=1),
    Row(
        R.NOT_ANCHORED,
        "cmp-pvm",
        "hold",
        P,
        nothing,
        HELLO,
        flow={"anchor": 0, "verified": 0},
        held=1,
    ),
    Row(
        R.MISMATCH,
        "cmp-svm",
        "drop",
        P,
        after(connected, vm(HELLO)),
        segment(1001, b"HELLO"),
        tag=1,
    ),
    Row(
        R.FLUSHED,
        "flush",
        "carry",
        P,
        after(vm(datagram(b"x")), turn(2, Phase.OPEN), flushed),
        None,
    ),
    Row(R.NO_PAIR, "mir-cli", "pass", P, unpaired, request(1)),
    Row(R.INPUT, "mir-cli", "pass", P, nothing, request(1)),
    Row(R.CLONE_FAILED, "mir-cli", "pass", P, no_link, request(1)),
    Row(
        R.REWRITTEN,
        "last-in",
        "pass",
        P,
        offset,
        request(5001, ack=1001),
        out=request(5001, ack=71001),
    ),
    Row(
        R.REWRITTEN,
        "last-out",
        "pass",
        P,
        offset,
        segment(71001, b"x", ack=5001),
        out=segment(1001, b"x", ack=5001),
    ),
    Row(R.PLAIN, "last-out", "pass", P, nothing, HELLO),
    Row(R.PLAIN, "mir-svm", "link", Mode.SECONDARY, nothing, HELLO, role=S),
    Row(R.NO_CONF, "cmp-pvm", "drop", P, unconfigured, HELLO),
    Row(R.CARRIED, "cmp-svm", "carry", P, vm(datagram(b"x")), datagram(b"x"), tag=1),
    Row(
        R.CARRIED,
        "drain",
        "carry",
        P,
        after(connected, vm(HELLO)),
        HELLO_AND_MORE,
        tag=1,
        flow={"verified": 1006, "held": 0, "head": 0, "emitter": 0},
        held=0,
    ),
    Row(
        R.WHOLE,
        "drain",
        "carry",
        P,
        after(connected, vm(HELLO)),
        HELLO,
        tag=1,
        flow={"verified": 1006, "held": 0, "head": 0, "emitter": 0},
        held=0,
    ),
    Row(R.PARKED, "cmp-pvm", "hold", P, after(connected, long_frame), None),
    Row(R.PARKED, "park", "hold", P, after(connected, long_frame), None),
    Row(R.UNVERIFIED, "park", "hold", P, after(connected, long_frame), None),
    Row(R.OLD, "park", "drop", P, nothing, HELLO),
    Row(R.PART, "drain", "carry", P, after(connected, vm(HELLO), peer(HALF)), HALF, tag=1),
    Row(
        R.ACK_RAISED,
        "cmp-svm",
        "note",
        P,
        connected,
        segment(1001, ack=5002),
        tag=1,
        flow={"floor": 5002},
    ),
    Row(
        R.AHEAD,
        "cmp-svm",
        "note",
        P,
        connected,
        HELLO,
        tag=1,
        flow={"bounds": 1, "verified": 1001},
        held=0,
    ),
    Row(R.ENDED, "age", "drop", P, after(connected, aged), None),
    Row(R.RUN, "age", "drop", P, after(connected, aged), None),
    Row(R.RUN, "flush", "drop", P, after(connected, vm(HELLO), flushed), None),
    Row(R.LINK_SILENT, "flush", "drop", P, after(connected, vm(HELLO), silent, flushed), None),
    Row(
        R.WITHHELD,
        "flush",
        "drop",
        P,
        after(connected, vm(HELLO), mode(Mode.WITHHOLD), flushed),
        None,
    ),
    Row(R.CARRIED, "park", "carry", P, connected, HELLO, mark=CARRIER),
    Row(R.TURNING, "park", "drop", P, after(connected, turn(1)), HELLO, mark=CARRIER),
    Row(R.LINK_SILENT, "park", "drop", P, after(connected, silent), HELLO, mark=CARRIER),
    Row(R.WITHHELD, "park", "drop", P, after(connected, mode(Mode.WITHHOLD)), HELLO, mark=CARRIER),
    Row(R.SOLO, "park", "drop", P, after(connected, mode(Mode.SOLO)), HELLO, mark=CARRIER),
    Row(R.MALFORMED, "park", "drop", P, connected, _ARP, mark=CARRIER),
    Row(R.CLIENT_GONE, "mir-cli", "drop", P, after(connected, vm(HELLO), gone), None),
    Row(R.CLIENT_GONE, "cmp-pvm", "drop", P, after(connected, gone), HELLO, held=0),
    Row(R.POSES, "mir-cli", "drop", P, nothing, OWN_TYPE),
    Row(R.POSES, "cmp-pvm", "drop", P, nothing, OWN_TYPE),
    Row(R.POSES, "mir-svm", "drop", Mode.SECONDARY, nothing, OWN_TYPE, role=S),
    Row(R.WRONG_MAC, "cmp-pvm", "drop", P, another_mac, HELLO, held=0),
    Row(R.WRONG_MAC, "mir-svm", "drop", Mode.SECONDARY, another_mac, HELLO, role=S),
    Row(
        R.SAID_AGAIN,
        "flush",
        "carry",
        Mode.SECONDARY,
        after(vm(HELLO), taken_over),
        None,
        role=S,
    ),
    Row(
        R.EMIT_FAILED,
        "cmp-svm",
        "hold",
        P,
        after(vm(datagram(b"x")), no_tap),
        datagram(b"x") / Padding(b"\0"),  # so that it cannot leave itself
        tag=1,
    ),
]


def _name(row: Row) -> str:
    return f"{row.program}-{row.verdict}-{row.reason.name.lower()}"


@pytest.mark.parametrize("row", TABLE, ids=_name)
def test_row(row: Row) -> None:
    reason = row.reason.name.lower().replace("_", "-")
    with Rig(row.role) as rig:
        rig.pair(mode=row.mode)
        try:
            row.before(rig)
            before = rig.count(row.program, row.verdict, reason)
            if row.frame is None:
                assert before > 0
                return
            _send(rig, row)
            assert rig.count(row.program, row.verdict, reason) == before + 1
            _look(rig, row)
        finally:
            mended(rig)


def _look(rig: Rig, row: Row) -> None:
    """The maps as the frame left them."""
    if row.held is not None:
        assert rig.plane.held().frames == row.held
    if row.flow:
        flow = rig.flow()
        assert {name: getattr(flow, name) for name in row.flow} == row.flow


def _send(rig: Rig, row: Row) -> None:
    assert row.frame is not None
    if row.tag is not None:
        rig.from_peer_raw(bytes(row.frame), row.tag)
        return
    run = rig.run(f"colo_{row.program.replace('-', '_')}", row.frame, row.mark)
    wanted = {"pass": PASS, "link": LINK}.get(row.verdict, DROP)
    assert run.retval == wanted
    if row.verdict == "pass":
        assert run.data_out == bytes(row.out or row.frame)


def test_every_reason_is_in_the_table() -> None:
    assert {row.reason for row in TABLE} == set(Reason) - {Reason.NONE}


def test_every_program_and_verdict_is_in_the_table() -> None:
    shown = {row.program for row in TABLE} | {"mir-link"}  # that one hears the link: test_mirror.py
    assert shown == {one.name.lower().replace("_", "-") for one in abi.Prog}
    assert ctypes.sizeof(abi.Count) == 16
