# SPDX-License-Identifier: GPL-2.0-only
"""The mirror programs on real hooks: what reaches the other host, and in whose numbers."""

from __future__ import annotations

import asyncio

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from colo_ebpf.lab.frames import CLIENT, VM
from colo_ebpf.model import Mode, Phase, VmRole
from tests.bpf.frames import beacon, request, segment, sums_are_right
from tests.bpf.rig import CLIENT_MAC, VM_MAC, VNI, Rig

SKEW = 70_000  # the SVM's ISN against the PVM's


def _echo() -> Packet:
    return Ether(src=CLIENT_MAC, dst=VM_MAC) / IP(src=CLIENT, dst=VM) / ICMP() / b"ping"


# --- primary ------------------------------------------------------------------------------


def test_a_clients_frame_reaches_the_vm_and_its_clone_carries_the_epoch() -> None:
    with Rig() as rig:
        rig.pair(9)
        rig.from_client(request(5000, b"GET"))
        (frame,) = rig.to_vm()
        assert bytes(frame[TCP].payload) == b"GET"
        assert [(tag, bytes(clone)) for tag, clone in rig.to_peer()] == [(9, bytes(frame))]
        assert rig.count("mir-cli", "pass", "input") == 1


def test_a_solo_host_sends_nothing_of_its_vm_over_the_link() -> None:
    with Rig() as rig:
        rig.pair(9, Mode.SOLO)
        rig.from_client(_echo())
        assert rig.to_peer() == []
        assert len(rig.to_vm()) == 1


def test_a_beacon_is_as_large_as_the_largest_frame_and_sent_twice() -> None:
    with Rig() as rig:
        rig.pair(9)
        rig.plane.beacon()
        assert [(tag, len(frame)) for tag, frame in rig.to_peer()] == [(9, 1514)] * 2


@pytest.mark.parametrize("role", [VmRole.PRIMARY, VmRole.SECONDARY])
def test_a_beacon_of_epoch_0_is_heard(role: VmRole) -> None:
    """A group of 0 is not put on the wire: without the option it is 0."""
    with Rig(role) as rig:
        rig.pair(3, Mode.PAIRING if role is VmRole.PRIMARY else Mode.SECONDARY)
        rig.silence()
        header = b"\x08\x00\x00\x00" + (VNI << 11).to_bytes(4, "big")
        rig.peer.sendto(header + bytes(beacon()), ("198.51.100.1", 4789))
        program = "cmp-svm" if role is VmRole.PRIMARY else "mir-link"
        assert rig.count(program, "drop", "beacon") == 2
        assert rig.plane.link_heard_ns() > 1


def test_another_pairings_frames_are_not_heard() -> None:
    with Rig() as rig:
        rig.pair(3)
        heard = rig.plane.link_heard_ns()
        rig.from_peer(segment(1, b"x"), 3, vni=VNI + 1)
        assert rig.count("cmp-svm", "drop", "not-ours") == 1
        assert rig.plane.link_heard_ns() == heard


# --- secondary ----------------------------------------------------------------------------


def _open(rig: Rig, epoch: int = 3) -> None:
    """A connection whose SYN-ACK the PVM numbered 1000 and the SVM 1000 + SKEW."""
    rig.from_peer(request(5000, flags="S"), epoch)
    rig.from_vm(segment(1000 + SKEW, ack=5001, flags="SA"))
    rig.from_peer(request(5001, ack=1001), epoch)


def _sent(rig: Rig) -> list[tuple[int, Packet]]:
    return [(tag, frame) for tag, frame in rig.to_peer() if frame.type == 0x0800]


def test_the_svm_hears_its_own_numbers_and_speaks_the_pvms(secondary: Rig) -> None:
    _open(secondary)
    acks = [frame[TCP].ack for frame in secondary.to_vm()]
    assert acks == [0, 1001 + SKEW]
    secondary.to_peer()
    secondary.from_vm(segment(1001 + SKEW, b"hello", ack=5001))
    ((tag, frame),) = _sent(secondary)
    assert (tag, frame[TCP].seq, bytes(frame[TCP].payload)) == (3, 1001, b"hello")
    again = frame.copy()
    del again[TCP].chksum
    assert bytes(Ether(bytes(again))) == bytes(frame)


def test_what_an_epoch_taught_ends_with_it_and_comes_back_if_its_turn_is_undone(
    secondary: Rig,
) -> None:
    _open(secondary)
    secondary.to_peer()
    for epoch, wanted in ((4, 2001), (5, 2001), (3, 2001 - SKEW)):
        secondary.plane.set_turn(epoch, Phase.OPEN)
        secondary.from_vm(segment(2001, b"x", ack=5001))
        assert [frame[TCP].seq for _, frame in _sent(secondary)] == [wanted % 2**32]


def test_after_a_takeover_the_client_still_sees_the_pvms_numbers(secondary: Rig) -> None:
    _open(secondary)
    secondary.to_peer()
    secondary.to_vm()
    secondary.plane.keep_offsets(3)
    secondary.plane.set_mode(Mode.SOLO)
    secondary.plane.set_turn(0, Phase.OPEN)
    secondary.from_vm(segment(1001 + SKEW, b"hello", ack=5001))
    (frame,) = secondary.to_client()
    assert (frame[TCP].seq, bytes(frame[TCP].payload)) == (1001, b"hello")
    secondary.from_client(request(5001, ack=1006))
    assert [f[TCP].ack for f in secondary.to_vm()] == [1006 + SKEW]
    assert _sent(secondary) == []


def test_the_primary_dies_before_the_client_answers_its_syn_ack(secondary: Rig) -> None:
    """Whoever serves learns from that answer what separates the two VMs' numbers."""
    secondary.from_peer(request(5000, flags="S"), 3)
    secondary.from_vm(segment(1000 + SKEW, ack=5001, flags="SA"))
    secondary.plane.keep_offsets(3)
    secondary.plane.set_mode(Mode.SOLO)
    secondary.plane.set_turn(0, Phase.OPEN)
    secondary.to_peer()
    secondary.to_vm()
    secondary.from_client(request(5001, ack=1001))
    assert [f[TCP].ack for f in secondary.to_vm()] == [1001 + SKEW]
    secondary.from_vm(segment(1001 + SKEW, b"hello", ack=5001))
    (frame,) = secondary.to_client()
    assert (frame[TCP].seq, bytes(frame[TCP].payload)) == (1001, b"hello")


def test_a_datagram_of_a_past_epoch_is_in_the_state_already(secondary: Rig) -> None:
    secondary.from_peer(_echo(), 2)
    assert secondary.to_vm() == []
    secondary.from_peer(_echo(), 3)
    assert len(secondary.to_vm()) == 1
    assert secondary.count("mir-link", "drop", "stale-epoch") == 1


def test_nothing_of_the_svm_reaches_a_client(secondary: Rig) -> None:
    for mode in (Mode.SECONDARY, Mode.WITHHOLD):
        secondary.plane.set_mode(mode)
        secondary.from_vm(segment(1, b"secret"))
        frame = Ether(src=VM_MAC, dst=CLIENT_MAC) / IP(src=VM, dst=CLIENT) / UDP() / b"secret"
        secondary.from_vm(frame)
        assert secondary.to_client() == []
        assert len(_sent(secondary)) == (2 if mode is Mode.SECONDARY else 0)


# --- options ------------------------------------------------------------------------------

S_CLOCK, P_CLOCK = 900_000, 500_000  # TSval of the two VMs at the same moment
NOP = ("NOP", None)


def _ts(value: int, echo: int, pads: int = 2) -> list[tuple[str, object]]:
    return [NOP] * pads + [("Timestamp", (value, echo))]


def _open_with_timestamps(rig: Rig, pads: int = 2) -> None:
    rig.from_peer(request(5000, flags="S", options=_ts(77, 0, pads)), 3)
    rig.from_vm(segment(1000 + SKEW, ack=5001, flags="SA", options=_ts(S_CLOCK, 77, pads)))
    rig.from_peer(request(5001, ack=1001, options=_ts(78, P_CLOCK, pads)), 3)


def _clocks(frame: Packet) -> tuple[int, int]:
    return dict(frame[TCP].options)["Timestamp"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("pads", [2, 1, 3])
def test_the_svm_hears_its_own_clock_and_speaks_the_pvms(secondary: Rig, pads: int) -> None:
    """Linux 6.15 drops a handshake's ACK whose TSecr it never sent. At odd places, too."""
    _open_with_timestamps(secondary, pads)
    first = secondary.to_vm()[-1]
    assert _clocks(first) == (78, S_CLOCK)
    assert sums_are_right(first)
    secondary.to_peer()
    secondary.from_vm(segment(1001 + SKEW, b"x", ack=5001, options=_ts(S_CLOCK + 40, 78, pads)))
    ((_, frame),) = _sent(secondary)
    assert _clocks(frame) == (P_CLOCK + 40, 78)
    assert sums_are_right(frame)


def test_the_svm_is_never_shown_a_clock_it_has_not_reached(secondary: Rig) -> None:
    _open_with_timestamps(secondary)
    secondary.to_vm()
    secondary.from_peer(request(5001, b"y", ack=1001, options=_ts(80, P_CLOCK + 500)), 3)
    (frame,) = secondary.to_vm()
    assert _clocks(frame) == (80, S_CLOCK)
    assert sums_are_right(frame)


def test_after_a_takeover_no_clock_runs_backwards(secondary: Rig) -> None:
    _open_with_timestamps(secondary)
    secondary.from_peer(request(5001, ack=1001, options=_ts(80, P_CLOCK + 500)), 3)
    secondary.to_vm()
    secondary.plane.keep_offsets(3)
    secondary.plane.set_mode(Mode.SOLO)
    for after, wanted in ((40, 500), (499, 500), (700, 700)):
        clock = _ts(S_CLOCK + after, 80)
        secondary.from_vm(segment(1001 + SKEW, b"x", ack=5001, options=clock))
        (frame,) = secondary.to_client()
        assert _clocks(frame) == (P_CLOCK + wanted, 80)
        assert sums_are_right(frame)


def test_sack_blocks_are_translated(secondary: Rig) -> None:
    _open(secondary)
    secondary.to_vm()
    options = [NOP, NOP, ("SAck", (1101, 1201, 1301, 1401))]
    secondary.from_peer(request(5001, ack=1001, options=options), 3)
    (frame,) = secondary.to_vm()
    edges = tuple(edge + SKEW for edge in (1101, 1201, 1301, 1401))
    assert dict(frame[TCP].options)["SAck"] == edges
    assert frame[TCP].ack == 1001 + SKEW
    assert sums_are_right(frame)


def test_options_that_do_not_fit_together_are_left_alone(secondary: Rig) -> None:
    _open(secondary)
    secondary.to_vm()
    for raw in (b"\x08\x00\x01\x01", b"\x08\x0a\x01\x01", b"\x05\xff\x01\x01", b"\x01" * 40):
        frame = request(5001, ack=1001)
        head = bytes(frame)[: 14 + 20 + 12] + bytes([((20 + len(raw)) // 4) << 4])
        rest = bytes(frame)[14 + 20 + 13 :]
        whole = bytearray(head + rest + raw)
        whole[16:18] = (len(whole) - 14).to_bytes(2, "big")
        secondary.from_peer_raw(bytes(whole), 3)
        (got,) = secondary.to_vm()
        assert bytes(got)[14 + 20 + 20 :] == raw
        assert got[TCP].ack == 1001 + SKEW


# --- lasting offsets ----------------------------------------------------------------------


def _folded(rig: Rig) -> list[bytes]:
    return asyncio.run(rig.plane.fold_offsets())


def test_a_kept_offset_becomes_lasting_and_nobody_notices(secondary: Rig) -> None:
    _open(secondary)
    secondary.plane.keep_offsets(3)
    secondary.plane.set_mode(Mode.SOLO)
    assert len(_folded(secondary)) == 1
    assert len(_folded(secondary)) == 1, "folding again changes nothing"
    secondary.to_peer()
    secondary.to_vm()
    secondary.from_vm(segment(1001 + SKEW, b"hello", ack=5001))
    (frame,) = secondary.to_client()
    assert (frame[TCP].seq, bytes(frame[TCP].payload)) == (1001, b"hello")
    secondary.from_client(request(5001, ack=1006))
    assert [f[TCP].ack for f in secondary.to_vm()] == [1006 + SKEW]


def _serving_with_offset() -> tuple[Rig, list[bytes]]:
    """A primary that took over a connection whose client counts SKEW less than the VM."""
    with Rig(VmRole.SECONDARY) as rig:
        rig.pair(3, Mode.SECONDARY)
        _open(rig)
        rig.plane.keep_offsets(3)
        entries = _folded(rig)
    return Rig(), entries


def test_the_link_speaks_vm_numbers_the_client_its_own() -> None:
    rig, entries = _serving_with_offset()
    with rig:
        rig.pair(5)
        rig.plane.learn_offsets(entries)
        rig.from_client(request(5001, b"GET", ack=1001))
        assert [f[TCP].ack for f in rig.to_vm()] == [1001 + SKEW]
        assert [f[TCP].ack for _, f in rig.to_peer()] == [1001 + SKEW]
        rig.from_vm(segment(1001 + SKEW, b"first", ack=5001))
        rig.plane.set_turn(6, Phase.OPEN)
        rig.plane.flush()  # the flow had no anchor: what came before the turn leaves now
        rig.from_vm(segment(1006 + SKEW, b"second", ack=5001))
        rig.from_peer(segment(1006 + SKEW, b"second", ack=5001), 6)
        sent = [(f[TCP].seq, bytes(f[TCP].payload)) for f in rig.to_client()]
        assert sent == [(1001, b"first"), (1006, b"second")]


def test_lasting_clocks_are_translated_both_ways() -> None:
    with Rig(VmRole.SECONDARY) as rig:
        rig.pair(3, Mode.SECONDARY)
        _open_with_timestamps(rig)
        rig.plane.keep_offsets(3)
        entries = _folded(rig)
    with Rig() as rig:
        rig.pair(5, Mode.SOLO)
        rig.plane.learn_offsets(entries)
        rig.from_client(request(5001, b"x", ack=1001, options=_ts(90, P_CLOCK + 9)))
        (frame,) = rig.to_vm()
        assert _clocks(frame) == (90, S_CLOCK + 9)
        assert sums_are_right(frame)
        rig.from_vm(segment(1001 + SKEW, b"y", ack=5002, options=_ts(S_CLOCK + 10, 90)))
        (frame,) = rig.to_client()
        assert _clocks(frame) == (P_CLOCK + 10, 90)
        assert sums_are_right(frame)


def test_a_syn_ends_what_was_known_of_the_tuple() -> None:
    rig, entries = _serving_with_offset()
    with rig:
        rig.pair(5)
        rig.plane.learn_offsets(entries)
        rig.from_client(request(9000, flags="S"))
        assert asyncio.run(rig.plane.fold_offsets()) == []


def test_a_secondary_keeps_what_it_was_handed_for_its_own_takeover() -> None:
    _, entries = _serving_with_offset()
    with Rig(VmRole.SECONDARY) as rig:
        rig.pair(3, Mode.SECONDARY)
        rig.plane.learn_offsets(entries)
        rig.from_peer(request(5001, b"x", ack=1001 + SKEW), 3)
        assert [f[TCP].ack for f in rig.to_vm()] == [1001 + SKEW], "the link speaks VM numbers"
        rig.from_vm(segment(1001 + SKEW, b"y", ack=5002))
        assert [f[TCP].seq for _, f in _sent(rig)] == [1001 + SKEW]
        rig.plane.set_mode(Mode.SOLO)
        rig.from_vm(segment(1001 + SKEW, b"y", ack=5002))
        assert [f[TCP].seq for f in rig.to_client()] == [1001]
