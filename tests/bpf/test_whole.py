# SPDX-License-Identifier: GPL-2.0-only
"""A GSO frame of the SVM that leaves itself, in place of the held frames it is equal to.

The client's side of the host cuts and sums what passes, so that each frame can be looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from colo_ebpf.datapath.net import netdev
from colo_ebpf.lab.frames import CLIENT, VM
from tests.bpf.frames import offloaded, payload, stream, sums_are_right
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig

MSS = 1400
SKEW = 7  # between the VMs' clocks
Wrap = Callable[..., Packet]


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A connection that both VMs have accepted."""
    with Rig(large=True) as made:
        made.let_the_wire_cut(True)
        made.pair()
        _connect(made, _four)
        yield made


def _connect(rig: Rig, wrap: Wrap) -> None:
    rig.from_vm(wrap(_tcp(1000, flags="SA")))
    rig.from_peer(wrap(_tcp(1000, flags="SA")), 1)
    rig.to_client()


def _tcp(seq: int, data: bytes = b"", flags: str = "A", ack: int = 5001, at: int = 9) -> Packet:
    options = [("NOP", None), ("NOP", None), ("Timestamp", (at, 1))]
    words = {"sport": 80, "dport": 4711, "seq": seq, "ack": ack, "window": 1000}
    return TCP(**words, flags=flags, options=options) / data


def _four(packet: Packet, ttl: int = 64, number: int = 100) -> Packet:
    ip = IP(src=VM, dst=CLIENT, ttl=ttl, id=number)
    return Ether(src=VM_MAC, dst=CLIENT_MAC) / ip / packet


def _six(packet: Packet, ttl: int = 64, number: int = 100) -> Packet:
    ip = IPv6(src="2001:db8::10", dst="2001:db8::1", hlim=ttl, fl=number)
    return Ether(src=VM_MAC, dst=CLIENT_MAC) / ip / packet


def _of_svm(seq: int, data: bytes, flags: str = "A", ack: int = 5001) -> Packet:
    """What it produced is the same, all else its own."""
    return _four(_tcp(seq, data, flags, ack, at=9 + SKEW), 63, 200)


def _whole(rig: Rig) -> int:
    return rig.count("drain", "carry", "whole")


@pytest.mark.parametrize("size", [MSS + 1, 2 * MSS, 30_000, 45 * MSS])
@pytest.mark.parametrize("wrap", [_four, _six])
def test_it_leaves_under_the_header_of_the_pvm(rig: Rig, wrap: Wrap, size: int) -> None:
    if wrap is _six:
        _connect(rig, _six)
    data = stream(size)
    rig.from_vm_offloaded(wrap(_tcp(1001, data)), MSS)
    assert rig.to_client() == []
    rig.from_peer_offloaded(wrap(_tcp(1001, data, "PA", at=9 + SKEW), 63, 200), MSS)
    frames = rig.to_client()
    assert payload(frames) == data
    assert _whole(rig) == 1
    assert rig.plane.held().frames == 0
    assert [f[TCP].seq - 1001 for f in frames] == list(range(0, size, MSS))
    assert {f.payload.ttl if IP in f else f.payload.hlim for f in frames} == {64}
    assert frames[0].payload.id == 100 if wrap is _four else frames[0].payload.fl == 100
    assert {dict(f[TCP].options)["Timestamp"] for f in frames} == {(9, 1)}
    assert [str(f[TCP].flags) for f in frames] == ["A"] * (len(frames) - 1) + ["PA"]
    assert all(sums_are_right(f) for f in frames)


def test_it_stands_for_frames_the_pvm_sent_one_by_one(rig: Rig) -> None:
    data = stream(4 * MSS)
    for start in range(0, len(data), MSS):
        rig.from_vm(_four(_tcp(1001 + start, data[start : start + MSS], "PA", ack=5001)))
    rig.from_peer_offloaded(_of_svm(1001, data), MSS)
    frames = rig.to_client()
    assert (payload(frames), _whole(rig)) == (data, 1)
    assert rig.plane.held().frames == 0


def test_several_stand_for_one_frame_of_the_pvm(rig: Rig) -> None:
    data = stream(10 * MSS)
    rig.from_vm_offloaded(_four(_tcp(1001, data)), MSS)
    rig.await_line()
    for start, end in ((0, 2), (2, 7), (7, 10)):
        part = data[start * MSS : end * MSS]
        rig.from_peer_offloaded(_of_svm(1001 + start * MSS, part), MSS)
    frames = rig.to_client()
    assert (payload(frames), _whole(rig)) == (data, 3)
    assert all(sums_are_right(f) for f in frames)


def test_acknowledgment_and_window_are_lowered(rig: Rig) -> None:
    """I2: the SVM has received up to 5011, and its window ends at 6011."""
    data = stream(3 * MSS)
    rig.from_vm_offloaded(_four(_tcp(1001, data, ack=5101)), MSS)
    rig.from_peer_offloaded(_of_svm(1001, data, ack=5011), MSS)
    frames = rig.to_client()
    assert (payload(frames), _whole(rig)) == (data, 1)
    assert {(f[TCP].ack, f[TCP].window) for f in frames} == {(5011, 1000)}
    assert all(sums_are_right(f) for f in frames)


@pytest.mark.parametrize("extra", [-1, 1, -MSS - 1, MSS + 1])
def test_what_ends_elsewhere_leaves_from_the_store(rig: Rig, extra: int) -> None:
    data = stream(6 * MSS)
    rig.from_vm_offloaded(_four(_tcp(1001, data[: 4 * MSS])), MSS)
    rig.from_peer_offloaded(_of_svm(1001, data[: 4 * MSS + extra]), MSS)
    frames = rig.to_client()
    full = min(4, 4 + (extra - 1) // MSS if extra < 0 else 4)
    assert payload(frames) == data[: full * MSS]
    assert _whole(rig) == 0
    assert {f.payload.id for f in frames} <= {100, 101, 102, 103}


def test_a_difference_in_it_lets_nothing_of_it_out(rig: Rig) -> None:
    data = stream(5 * MSS)
    rig.from_vm_offloaded(_four(_tcp(1001, data)), MSS)
    rig.from_peer_offloaded(_of_svm(1001, data[:-1] + b"?"), MSS)
    frames = rig.to_client()
    assert payload(frames) == data[: 4 * MSS]
    assert (_whole(rig), rig.plane.held().frames) == (0, 1)
    assert {f.payload.ttl for f in frames} == {64}


def test_bytes_it_had_sent_before_were_not_looked_at_again(rig: Rig) -> None:
    """So they never leave in its frame, whatever they are now."""
    data = stream(1400)
    rig.from_vm(_four(_tcp(1001, data)))
    rig.from_peer(_of_svm(1001, data[:700]), 1)
    rig.from_peer(_of_svm(1001, b"?" * 700 + data[700:]), 1)
    assert (payload(rig.to_client()), _whole(rig)) == (data, 0)


def test_larger_segments_than_the_pvms_do_not_leave(rig: Rig) -> None:
    """The way to the client may not take them."""
    data = stream(4000)
    rig.from_vm_offloaded(_four(_tcp(1001, data)), 1000)
    rig.from_peer_offloaded(_of_svm(1001, data), MSS)
    frames = rig.to_client()
    assert (payload(frames), _whole(rig)) == (data, 0)
    assert max(len(f[TCP].payload) for f in frames) == 1000


def test_other_headers_do_not_fit(rig: Rig) -> None:
    data = stream(4000)
    plain = TCP(sport=80, dport=4711, seq=1001, ack=5001, flags="A", window=1000) / data
    rig.from_vm_offloaded(_four(_tcp(1001, data)), MSS)
    rig.from_peer_offloaded(_four(plain), MSS)
    assert (payload(rig.to_client()), _whole(rig)) == (data, 0)


def test_a_vlan_tag_is_put_back_by_the_store(rig: Rig) -> None:
    def tagged(packet: Packet, ttl: int = 64, number: int = 100) -> Packet:
        ip = IP(src=VM, dst=CLIENT, ttl=ttl, id=number)
        return Ether(src=VM_MAC, dst=CLIENT_MAC) / Dot1Q(vlan=7) / ip / packet

    _connect(rig, tagged)
    data = stream(4000)
    rig.from_vm_offloaded(tagged(_tcp(1001, data)), MSS)
    rig.from_peer_offloaded(tagged(_tcp(1001, data)), MSS)
    frames = rig.to_client()
    assert (payload(frames), _whole(rig)) == (data, 0)
    assert {f[Dot1Q].vlan for f in frames} == {7}


def test_the_end_of_a_stream_leaves_from_the_store(rig: Rig) -> None:
    data = stream(4000)
    rig.from_vm_offloaded(_four(_tcp(1001, data, "FA")), MSS)
    rig.from_peer_offloaded(_of_svm(1001, data, "FA"), MSS)
    frames = rig.to_client()
    assert (payload(frames), _whole(rig)) == (data, 0)
    assert str(frames[-1][TCP].flags) == "FA"


def test_what_a_held_frame_was_padded_with_does_not_leave(rig: Rig) -> None:
    first = bytes(_four(_tcp(1001, b"x")))
    rig.from_vm_raw(first + b"\xaa\xbb\xcc")
    rig.from_vm(_four(_tcp(1002, b"yz")))
    rig.from_peer(_of_svm(1001, b"xyz"), 1)
    frames = rig.to_client()
    assert bytes(frames[0]) == first
    assert (payload(frames), _whole(rig)) == (b"xyz", 0)
    assert all(sums_are_right(f) for f in frames)


@pytest.mark.parametrize("wrap", [_four, _six])
def test_one_frame_leaves_once(rig: Rig, wrap: Wrap) -> None:
    if wrap is _six:
        _connect(rig, _six)
    rig.from_vm(wrap(_tcp(1001, b"data")))
    rig.from_peer(wrap(_tcp(1001, b"data", "PA", at=9 + SKEW), 63, 200), 1)
    (frame,) = rig.to_client()
    assert (frame[TCP].seq, bytes(frame[TCP].payload)) == (1001, b"data")
    assert dict(frame[TCP].options)["Timestamp"] == (9, 1)
    assert sums_are_right(frame)
    assert (_whole(rig), rig.plane.held().frames, rig.plane.flush().emitted) == (1, 0, 0)


def test_an_acknowledgment_that_waits_leaves_behind_it(rig: Rig) -> None:
    rig.from_vm(_four(_tcp(1001, b"data")))
    rig.from_vm(_four(_tcp(1005, ack=5011)))
    rig.from_peer(_of_svm(1001, b"data", ack=5011), 1)
    frames = rig.to_client()
    assert [(bytes(f[TCP].payload), f[TCP].ack) for f in frames] == [(b"data", 5001), (b"", 5011)]
    assert (_whole(rig), rig.plane.held().frames) == (1, 0)


def test_while_another_cpu_sends_it_does_not_leave(rig: Rig) -> None:
    rig.from_vm(_four(_tcp(1001, b"data")))
    rig.change_flows(emitter=1)
    rig.from_peer(_of_svm(1001, b"data"), 1)
    assert (rig.to_client(), _whole(rig)) == ([], 0)
    rig.change_flows(emitter=0)
    rig.plane.flush()
    assert payload(rig.to_client()) == b"data"


def test_what_is_lost_behind_it_its_vm_sends_again(rig: Rig) -> None:
    data = stream(4000)
    rig.from_vm_offloaded(_four(_tcp(1001, data)), MSS)
    netdev.set_down("tap0")
    try:
        rig.from_peer_offloaded(_of_svm(1001, data), MSS)
        assert rig.to_client() == []
    finally:
        netdev.set_up("tap0", 1500)
    assert rig.plane.held().frames == 0
    rig.from_vm_offloaded(_four(_tcp(1001, data)), MSS)
    frames = rig.to_client()
    assert payload(frames) == data
    assert all(sums_are_right(f) for f in frames)


@pytest.mark.parametrize("wrap", [_four, _six])
@pytest.mark.parametrize("wrong", [False, True])
def test_a_datagram_leaves_under_the_header_of_the_pvm(rig: Rig, wrap: Wrap, wrong: bool) -> None:
    """Its checksum is due, and what is written there meanwhile was not compared."""
    sent = wrap(UDP(sport=7, dport=9) / stream(99))
    raw = bytearray(offloaded(wrap(UDP(sport=7, dport=9) / stream(99), 63, 200), 0))
    if wrong:
        raw[-100] ^= 1
    rig.from_vm(sent)
    rig.from_peer_vnet(bytes(raw), 1)
    assert [bytes(f) for f in rig.to_client()] == [bytes(sent)]


@pytest.mark.parametrize(("due", "leaves"), [(True, [1000]), (False, [400, 600])])
def test_a_finished_checksum_is_that_of_one_held_frame(
    rig: Rig, due: bool, leaves: list[int]
) -> None:
    data = stream(1000)
    rig.from_vm(_four(_tcp(1001, data[:400])))
    rig.from_vm(_four(_tcp(1401, data[400:])))
    frame = _of_svm(1001, data)
    rig.from_peer_offloaded(frame, 0) if due else rig.from_peer(frame, 1)
    frames = rig.to_client()
    assert [len(f[TCP].payload) for f in frames] == leaves
    assert all(sums_are_right(f) for f in frames)


@pytest.mark.parametrize("wrap", [_four, _six])
@pytest.mark.parametrize("sacks", [None, 0, 1, 2])
def test_its_checksum_is_right_whatever_differs_in_the_header(
    rig: Rig, wrap: Wrap, sacks: int | None
) -> None:
    """What the SVM says there is its own: flags, window, options, urgent pointer."""
    if wrap is _six:
        _connect(rig, _six)

    def said(at: int, **words: object) -> Packet:
        tcp = _tcp(1001, b"odd", at=at)
        if sacks is None:
            tcp.options = []
        else:
            tcp.options += [("NOP", None), ("NOP", None), ("SAck", (at, at + 9))] * sacks
        for name, value in words.items():
            setattr(tcp, name, value)
        return tcp

    rig.from_vm(wrap(said(9, window=900, ack=5011, flags="PAE")))
    rig.from_peer(wrap(said(0xFFFF0007, window=1100, ack=5001, urgptr=3), 63, 200), 1)
    (frame,) = rig.to_client()
    assert (_whole(rig), rig.plane.held().frames) == (1, 0)
    assert sums_are_right(frame)
    tcp = frame[TCP]
    assert (tcp.ack, str(tcp.flags), bytes(tcp.payload)) == (5001, "PAE", b"odd")
    assert dict(tcp.options).get("Timestamp") == (None if sacks is None else (9, 1))
    assert frame.payload.id == 100 if wrap is _four else frame.payload.fl == 100


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize(
    "theirs",
    [
        {},
        {"ack": 5003},
        {"window": 1100},
        {"flags": "PA"},
        {"urgptr": 3},
        {"options": _tcp(0, at=9 + SKEW).options},
    ],
    ids=lambda theirs: next(iter(theirs), "nothing"),
)
def test_its_checksum_is_right_if_one_thing_differs(
    rig: Rig, theirs: dict[str, object], stamped: bool
) -> None:
    mine, others = _tcp(1001, b"odd", ack=5002), _tcp(1001, b"odd", ack=5002)
    for name, value in theirs.items():
        setattr(others, name, value)
    if not stamped:
        mine.options = others.options = []
    rig.from_vm(_four(mine))
    rig.from_peer(_four(others, 63, 200), 1)
    (frame,) = rig.to_client()
    assert (_whole(rig), frame[TCP].ack, str(frame[TCP].flags)) == (1, 5002, "A")
    assert (frame.payload.id, frame.payload.ttl) == (100, 64)
    assert sums_are_right(frame)


@pytest.mark.parametrize("theirs", ["A", "AU"])
def test_urgent_data_leaves_from_the_store(rig: Rig, theirs: str) -> None:
    """Whose pointer the SVM's frame does not have."""
    mine, others = _tcp(1001, b"data", flags="AU"), _tcp(1001, b"data", flags=theirs)
    mine.urgptr, others.urgptr = 2, 4
    rig.from_vm(_four(mine))
    rig.from_peer(_four(others, 63, 200), 1)
    (frame,) = rig.to_client()
    assert (frame[TCP].urgptr, _whole(rig)) == (2, 0)
    assert sums_are_right(frame)
