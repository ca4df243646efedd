# SPDX-License-Identifier: GPL-2.0-only
"""Schedules that broke naive versions of the design, each by itself, on real hooks.

The names (A2, C8, ...) are those of the list the design was attacked with; each test says the
schedule. `make mutants` takes the mends out one at a time.
"""

from __future__ import annotations

import asyncio

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from colo_ebpf.lab.frames import CLIENT, VM
from colo_ebpf.model import Mode, Phase
from tests.bpf.frames import beacon, datagram, request, segment
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig, established

SKEW = 70000


def _said(rig: Rig) -> list[tuple[int, bytes]]:
    return [(f[TCP].seq, bytes(f[TCP].payload)) for f in rig.to_client() if TCP in f]


def _tcp_to_peer(rig: Rig) -> list[TCP]:
    return [frame[TCP] for _, frame in rig.to_peer() if TCP in frame]


def test_a2_a_late_daemon_lets_nothing_verify_across_a_load() -> None:
    """The old SVM said it; the new one, loaded meanwhile, never will. No daemon wrote the epoch."""
    with established() as rig:
        rig.from_peer(segment(1001, b"you are #1", ack=5001), 1)
        rig.plane.set_turn(1, Phase.TURNING)  # armed; then the daemon sleeps
        rig.from_vm(segment(1001, b"you are #1", ack=5001))
        rig.from_peer(segment(1001, b"you are #2", ack=5001), 2)
        assert _said(rig) == []


def test_a2_a_load_nobody_told_of_stops_the_comparison() -> None:
    """The link itself says that the SVM is in another epoch."""
    with established() as rig:
        rig.from_peer(segment(1001, b"old", ack=5001), 1)
        rig.from_peer(segment(1001, b"new", ack=5001), 2)
        assert rig.plane.turn().phase is Phase.TURNING
        assert "epoch_ahead" in rig.events()
        rig.from_vm(segment(1001, b"old", ack=5001))
        assert _said(rig) == []


def test_a2_an_unproven_turn_moves_no_anchor() -> None:
    """Bytes after RESUME and before a late write are in no checkpoint."""
    with established() as rig:
        rig.plane.set_turn(2, Phase.TURNING)
        rig.from_vm(segment(1001, b"since when?", ack=5001))
        rig.from_vm(segment(1001, b"since when?", ack=5001))
        rig.plane.set_turn(2, Phase.TURNING)
        assert _said(rig) == []


def test_a3_a_load_rolls_the_floor_back() -> None:
    """The old SVM had received to 9000; the state that was loaded only what the PVM had acked."""
    with established() as rig:
        rig.from_vm(segment(1001, ack=5001))
        rig.from_peer(segment(1001, ack=9000), 1)
        rig.plane.set_turn(2, Phase.OPEN)
        rig.from_vm(segment(1001, b"x", ack=9000))
        rig.from_peer(segment(1001, b"x", ack=5001), 2)
        acks = [frame[TCP].ack for frame in rig.to_client()]
        assert acks, "nothing left at all"
        assert max(acks) == 5001


def test_a3_a_stale_floor_accepts_no_new_connection() -> None:
    """Same tuple, new SYN: what the last connection's floor was says nothing."""
    with established() as rig:
        rig.from_peer(segment(1001, ack=900_000), 1)
        rig.from_client(request(800_000, flags="S"))
        rig.from_vm(segment(50_000, ack=800_001, flags="SA"))
        assert _said(rig) == []
        rig.from_peer(segment(60_000, ack=800_001, flags="SA"), 1)
        assert [seq for seq, _ in _said(rig)] == [50_000]


def test_a8_a_lasting_offset_outlives_re_pairing_and_its_turns(secondary: Rig) -> None:
    """The survivor of one takeover takes a replica, and its epochs turn."""
    rig = secondary
    rig.from_peer(request(5000, flags="S"), 3)
    rig.from_vm(segment(1000 + SKEW, ack=5001, flags="SA"))
    rig.from_peer(request(5001, ack=1001), 3)
    rig.plane.keep_offsets(3)
    asyncio.run(rig.plane.fold_offsets())
    rig.plane.set_mode(Mode.SOLO)
    for epoch in (1, 2, 3):
        rig.plane.set_turn(epoch, Phase.OPEN)
        rig.from_vm(segment(1001 + SKEW, b"still", ack=5001))
        assert _said(rig) == [(1001, b"still")]


def test_a12_a_reset_waits_until_both_reset() -> None:
    """The PVM's process lost a race the SVM's did not lose."""
    with established() as rig:
        rig.from_vm(segment(1001, flags="R"))
        assert rig.to_client() == []
        rig.from_peer(segment(1001, flags="R"), 1)
        assert [str(f[TCP].flags) for f in rig.to_client()] == ["R"]


def test_a12_a_reset_of_the_svm_alone_waits_until_the_pvm_resets_or_says_more() -> None:
    with established() as rig:
        rig.from_peer(segment(1001, flags="R"), 1)
        assert rig.plane.held_frames() == 1
        rig.from_vm(segment(1001, b"alive", ack=5001))
        assert "svm_reset" in rig.events()


def test_a12_a_cut_off_primary_says_nothing_at_all() -> None:
    """Verified bytes again, challenge ACKs, resets, ARP: each would draw the clients' traffic."""
    with established() as rig:
        rig.from_vm(segment(1001, b"known", ack=5001))
        rig.from_peer(segment(1001, b"known", ack=5001), 1)
        assert len(_said(rig)) == 1
        rig.silence()
        rig.from_vm(segment(1001, b"known", ack=5001))
        rig.from_vm(segment(1006, ack=5001))
        rig.from_vm(segment(1006, flags="R"))
        rig.from_vm(datagram(b"x"))
        rig.from_vm(Ether(src=VM_MAC, dst=CLIENT_MAC) / ARP(op=2, psrc=VM))
        assert rig.to_client() == []


def test_b1_an_svm_that_missed_an_input_is_told_of_once() -> None:
    """The clone of the client's last ACK was lost: the SVM resends what the client has."""
    with established() as rig:
        _both_send(rig)
        rig.from_client(request(5001, ack=1101))
        rig.to_vm()
        _acknowledged_long_ago(rig)
        rig.events()
        for count in range(4):
            rig.from_peer(segment(1001, b"x" * 100, ack=5001), 1)
            assert ("missed_input" in rig.events()) == (count == 1)


def test_b1_an_ack_may_still_be_on_its_way_to_the_svm() -> None:
    """It resends for a reason of its own, a reordered ACK say: no input is missing."""
    with established() as rig:
        _both_send(rig)
        rig.from_client(request(5001, ack=1101))
        rig.events()
        for _ in range(4):
            rig.from_peer(segment(1001, b"x" * 100, ack=5001), 1)
        assert "missed_input" not in rig.events()


def _acknowledged_long_ago(rig: Rig) -> None:
    acked_ns = rig.flow().c_acked_ns
    assert acked_ns > 0
    rig.change_flows(c_acked_ns=acked_ns - 10**9)


def _both_send(rig: Rig) -> None:
    for send in (rig.from_vm, lambda frame: rig.from_peer(frame, 1)):
        send(segment(1001, b"x" * 100, ack=5001))


def test_b1_an_svm_that_resends_what_the_client_lacks_is_right() -> None:
    with established() as rig:
        _both_send(rig)
        rig.events()
        for _ in range(4):
            rig.from_peer(segment(1001, b"x" * 100, ack=5001), 1)
        assert "missed_input" not in rig.events()


def test_b1_a_frame_of_the_svm_that_is_lost_is_told_of_once_an_epoch() -> None:
    """Nothing behind it can be verified, and its TCP sends it again when a timer ends."""
    with established() as rig:
        for start in (1001, 1101, 1201):
            rig.from_vm(segment(start, b"x" * 100, ack=5001))
        rig.events()
        for start in (1101, 1201):
            rig.from_peer(segment(start, b"x" * 100, ack=5001), 1)
            assert rig.events() == (["gap"] if start == 1101 else [])
        assert rig.count("cmp-svm", "drop", "gap") == 2
        assert rig.to_client() == []
        rig.plane.set_turn(2, Phase.OPEN)
        rig.from_peer(segment(1401, b"x" * 100, ack=5001), 2)
        assert rig.events() == ["gap"]


def test_b1_the_lost_frame_may_come_after_all() -> None:
    with established() as rig:
        for start in (1001, 1101):
            rig.from_vm(segment(start, b"x" * 100, ack=5001))
        for start in (1101, 1001, 1101):
            rig.from_peer(segment(start, b"x" * 100, ack=5001), 1)
        assert [len(data) for _, data in _said(rig)] == [100, 100]


def test_c1_a_withheld_ack_ages_and_the_newest_wins() -> None:
    """The SVM's application has stopped reading; the client must not wait for ever."""
    with established() as rig:
        rig.plane.rearm_held()
        for ack in (5400, 5800, 5600 + 400):
            rig.from_vm(segment(1001, ack=ack))
        held = rig.plane.held()
        assert (held.frames, held.oldest_ns is not None) == (1, True)
        assert "held" in rig.events()
        rig.plane.set_turn(2, Phase.OPEN)
        rig.plane.flush()
        assert [frame[TCP].ack for frame in rig.to_client()] == [6000]


@pytest.mark.parametrize("start", [901, 1001])
def test_c2_what_is_below_the_anchor_is_in_the_checkpoint(start: int) -> None:
    """At the turn the PVM stood at 1501; the SVM first resends from where its ACKs ended."""
    stream = bytes(range(256)) * 8
    with established() as rig:
        rig.from_vm(segment(1001, stream[:500], ack=5001))
        rig.plane.set_turn(2, Phase.OPEN)
        rig.plane.flush()
        rig.to_client()
        rig.from_vm(segment(1001, stream[:500], ack=5001))
        assert _said(rig) == [(1001, stream[:500])], "the PVM's passes, without the SVM's"
        rig.from_peer(segment(1001, stream[:500], ack=5001), 2)
        rig.from_peer(segment(1001, stream[:1000], ack=5001), 2)  # collapsed with new bytes
        rig.from_vm(segment(1501, stream[500:1000], ack=5001))
        assert _said(rig) == [(1501, stream[500:1000])]
        assert rig.plane.mismatches() == []
        rig.from_vm(segment(start + 600, stream[start - 401 : 700], ack=5001))
        assert rig.count("cmp-pvm", "pass", "old") == 2


def test_c3_a_full_list_keeps_its_oldest_boundaries() -> None:
    """The SVM is always ahead, in small steps; the PVM stops between two of the latest."""
    with established() as rig:
        for at in range(100):
            rig.from_peer(segment(1001 + at, bytes([at]), ack=5001), 1)
        rig.from_vm(segment(1001, bytes(range(20)), ack=5001))
        assert _said(rig) == [(1001, bytes(range(20)))]
        rig.from_vm(segment(1021, bytes(range(20, 100)), ack=5001))
        assert _said(rig) == [(1021, bytes(range(20, 100)))]


def test_c7_what_is_in_the_state_is_not_delivered_again(secondary: Rig) -> None:
    """A datagram cloned between the two STOPs is in the snapshot and in the SVM's queue."""
    frame = Ether(src=CLIENT_MAC, dst=VM_MAC) / IP(src=CLIENT, dst=VM) / UDP(sport=1) / b"x"
    secondary.from_peer(frame, 2)
    assert secondary.to_vm() == []
    secondary.from_peer(request(5001, b"tcp knows a copy"), 2)
    assert len(secondary.to_vm()) == 1


def test_c7_a_surplus_answer_of_the_svm_is_no_mismatch() -> None:
    with established() as rig:
        for _ in range(3):
            rig.from_peer(datagram(b"pong"), 1)
        assert rig.events() == []
        rig.from_vm(datagram(b"pong"))
        assert len(rig.to_client()) == 1


def test_c8_what_comes_after_the_turn_waits_for_the_flush() -> None:
    """Else the new epoch's bytes overtake the old one's."""
    with established() as rig:
        rig.from_vm(segment(1001, b"before", ack=5001))
        rig.plane.set_turn(2, Phase.OPEN)
        rig.from_peer(segment(1007, b"behind", ack=5001), 2)
        rig.from_vm(segment(1007, b"behind", ack=5001))
        assert _said(rig) == []
        rig.plane.flush()
        assert _said(rig) == [(1001, b"before"), (1007, b"behind")]


def test_c11_a_connection_the_guest_opens(secondary: Rig) -> None:
    """The SVM's SYN has a number of its own; the server acknowledges the PVM's."""
    secondary.from_vm(segment(1000 + SKEW, flags="S"))
    assert [p.seq for p in _tcp_to_peer(secondary)] == [1000 + SKEW]
    secondary.from_peer(request(9000, ack=1001, flags="SA"), 3)
    (answer,) = secondary.to_vm()
    assert (answer[TCP].ack, str(answer[TCP].flags)) == (1001 + SKEW, "SA")
    secondary.from_vm(segment(1001 + SKEW, b"GET", ack=9001))
    assert [(p.seq, p.ack) for p in _tcp_to_peer(secondary)] == [(1001, 9001)]


@pytest.mark.parametrize("pvm_first", [True, False])
def test_c11_the_pvms_syn_waits_for_the_svms(pvm_first: bool) -> None:
    with Rig() as rig:
        rig.pair()
        if pvm_first:
            rig.from_vm(segment(1000, flags="S"))
            assert _said(rig) == []
            rig.from_peer(segment(71000, flags="S"), 1)
        else:
            rig.from_peer(segment(71000, flags="S"), 1)
            rig.from_vm(segment(1000, flags="S"))
        assert [seq for seq, _ in _said(rig)] == [1000]
        rig.from_client(request(9000, ack=1001, flags="SA"))
        for send in (rig.from_vm, lambda frame: rig.from_peer(frame, 1)):
            send(segment(1001, ack=9001))
        for send in (rig.from_vm, lambda frame: rig.from_peer(frame, 1)):
            send(segment(1001, b"GET", ack=9001))
        assert _said(rig)[-1] == (1001, b"GET")


def test_c11_both_open_at_once() -> None:
    """RFC 9293, figure 8: each side answers a SYN with a SYN-ACK of the same number."""
    with Rig() as rig:
        rig.pair()
        sides = (rig.from_vm, lambda frame: rig.from_peer(frame, 1))
        for send, isn in zip(sides, (1000, 71000), strict=True):
            send(segment(isn, flags="S"))
        assert [seq for seq, _ in _said(rig)] == [1000]
        rig.from_client(request(9000, flags="S"))
        rig.from_vm(segment(1000, ack=9001, flags="SA"))
        assert _said(rig) == [], "the SVM has not received the client's SYN"
        rig.from_peer(segment(71000, ack=9001, flags="SA"), 1)
        (answer,) = rig.to_client()
        assert (answer[TCP].seq, answer[TCP].ack, str(answer[TCP].flags)) == (1000, 9001, "SA")


def test_c12_frames_of_a_turn_that_is_undone_spoil_nothing(secondary: Rig) -> None:
    """Turned to 4, a segment came, and the load failed: epoch 3's offset is what it was."""
    secondary.from_vm(segment(1000 + SKEW, ack=5001, flags="SA"))
    secondary.from_peer(request(5001, ack=1001), 3)
    secondary.plane.set_turn(4, Phase.OPEN)
    secondary.from_vm(segment(3000, ack=5001, flags="SA"))
    secondary.from_peer(request(5001, ack=1001), 4)
    secondary.plane.set_turn(3, Phase.OPEN)
    secondary.to_peer()
    secondary.from_vm(segment(1001 + SKEW, b"x", ack=5001))
    assert [p.seq for p in _tcp_to_peer(secondary)] == [1001]


def test_c12_a_reset_without_ack_is_translated_too(secondary: Rig) -> None:
    secondary.from_vm(segment(1000 + SKEW, ack=5001, flags="SA"))
    secondary.from_peer(request(5001, ack=1001), 3)
    secondary.to_peer()
    secondary.from_vm(segment(1001 + SKEW, flags="R"))
    assert [p.seq for p in _tcp_to_peer(secondary)] == [1001]


def test_c14_a_held_gso_frame_leaves_in_frames_the_bridge_takes() -> None:
    data = bytes(range(250)) * 40
    with established() as rig:
        rig.from_vm_offloaded(segment(1001, data, ack=5001), 1448)
        rig.from_peer(segment(1001, data, ack=5001), 1)
        frames = rig.to_client()
        assert b"".join(bytes(f[TCP].payload) for f in frames) == data
        assert max(len(f) for f in frames) <= 1514


@pytest.mark.parametrize(
    "options",
    [
        [("MSS", 1400)],
        [("MSS", 1460), ("WScale", 3)],
        [("MSS", 1460), ("WScale", 2), ("SAckOK", b"")],
        [("MSS", 1460), ("WScale", 2), ("Timestamp", (1, 2))],
        [],
    ],
)
def test_e1_connections_that_offer_different_things_differ(options: list) -> None:
    """A SYN cookie on one side only leaves the window scale out."""
    with Rig() as rig:
        rig.pair()
        usual = [("MSS", 1460), ("WScale", 2)]
        rig.from_vm(segment(1000, ack=5001, flags="SA", options=usual))
        rig.from_peer(segment(71000, ack=5001, flags="SA", options=options), 1)
        assert _said(rig) == []
        assert "mismatch" in rig.events()
        assert len(rig.plane.mismatches()) == 1


def test_e1_clocks_and_the_order_of_options_are_each_vms_own() -> None:
    with Rig() as rig:
        rig.pair()
        first = [("MSS", 1460), ("Timestamp", (1, 2)), ("WScale", 2)]
        other = [("WScale", 2), ("MSS", 1460), ("Timestamp", (77, 2))]
        rig.from_vm(segment(1000, ack=5001, flags="SA", options=first))
        rig.from_peer(segment(71000, ack=5001, flags="SA", options=other), 1)
        assert [seq for seq, _ in _said(rig)] == [1000]


def test_e4_a_carrier_that_fails_is_counted_and_its_frame_stays() -> None:
    from colo_ebpf.datapath.net import netdev

    with established() as rig:
        rig.from_vm(segment(1001, b"x", ack=5001))
        rig.from_vm(segment(1002, b"y", ack=5001))
        netdev.set_down("tap0")
        try:
            rig.from_peer(segment(1001, b"xy", ack=5001), 1)
            assert rig.count("drain", "hold", "emit-failed") == 1
        finally:
            netdev.set_up("tap0", 1500)
        assert rig.plane.held().frames == 2
        rig.plane.set_turn(2, Phase.OPEN)
        rig.plane.flush()
        assert sorted(_said(rig)) == [(1001, b"x"), (1002, b"y")]


def test_a12_syn_acks_that_answer_different_syns_are_not_the_same() -> None:
    """The client tried again with a new number; one of the VMs has seen only the first try."""
    with Rig() as rig:
        rig.pair()
        rig.from_vm(segment(1000, ack=5001, flags="SA"))
        rig.from_peer(segment(71000, ack=9001, flags="SA"), 1)
        assert _said(rig) == []
        rig.from_peer(segment(71000, ack=5001, flags="SA"), 1)
        assert [seq for seq, _ in _said(rig)] == [1000]


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_flush_lets_nothing_out_while_the_peer_is_not_heard(epoch: int) -> None:
    """A host that hung does not speak once more before its daemon knows that the other serves."""
    with established() as rig:
        answer = segment(1001, b"said by both", ack=5001)
        rig.from_peer(answer, 1)
        rig.silence()
        rig.from_vm(answer)
        rig.plane.set_turn(epoch, Phase.OPEN)  # 2: what was held is in a checkpoint
        assert rig.plane.flush().left > 0
        assert rig.to_client() == []
        rig.from_peer(beacon(), epoch)
        assert rig.plane.flush().left == 0
        assert [bytes(f[TCP].payload) for f in rig.to_client()] == [b"said by both"]
