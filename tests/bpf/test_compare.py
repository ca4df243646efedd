# SPDX-License-Identifier: GPL-2.0-only
"""The shipped compare programs on real hooks: frames in, frames out to the byte, counters."""

from __future__ import annotations

import asyncio
import struct
from itertools import pairwise

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import ARP, Ether

from colo_ebpf.clock import boot_ns
from colo_ebpf.datapath.bpf.abi import LiveWord, Slot, SlotState
from colo_ebpf.datapath.maps.dump import held_slots
from colo_ebpf.model import Mode, Phase
from tests.bpf.frames import datagram, payload, request, segment, sums_are_right
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig, established


def test_svm_first_the_pvm_frame_passes() -> None:
    with established() as rig:
        rig.from_peer(segment(1001, b"hello", ack=5001), 1)
        rig.from_vm(segment(1001, b"hello", ack=5001))
        assert payload(rig.to_client()) == b"hello"
        assert rig.count("cmp-pvm", "pass", "verified") == 1
        assert rig.count("cmp-svm", "note", "ahead") >= 1


def test_pvm_first_is_held_and_carried_out_to_the_byte() -> None:
    with established() as rig:
        sent = segment(1001, b"hello", ack=5001)
        rig.from_vm(sent)
        assert rig.to_client() == []
        rig.from_peer(segment(1001, b"hello", ack=5001), 1)
        (frame,) = rig.to_client()
        assert bytes(frame) == bytes(sent)
        assert rig.count("drain", "carry", "whole") == 1
        assert rig.plane.held().frames == 0


def test_an_ack_that_waits_leaves_behind_the_row_that_raised_the_floor() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, b"answer", ack=5001))
        rig.from_vm(segment(1007, ack=6001))
        assert rig.to_client() == []
        rig.from_peer(segment(1001, b"answer", ack=6001), 1)
        answer, ack = rig.to_client()
        assert rig.count("drain", "carry", "whole") == 1
        assert (bytes(answer[TCP].payload), ack[TCP].seq, ack[TCP].ack) == (b"answer", 1007, 6001)
        assert rig.plane.held().frames == 0


def _cuts(first: list[int], step: int) -> list[int]:
    return [0, *first, *range(max(first) + step, 4000, step), 4000]


@pytest.mark.parametrize("cut_pvm", [[1, 7, 8, 9], [100], [3, 50, 64], [1448, 2896]])
@pytest.mark.parametrize("cut_svm", [[2, 5, 16], [1400], [99], [4, 1450, 2900]])
@pytest.mark.parametrize("pvm_first", [True, False])
def test_differing_segmentation(cut_pvm: list[int], cut_svm: list[int], pvm_first: bool) -> None:
    stream = bytes((i * 31 + i // 256) % 256 for i in range(4000))
    with established() as rig:
        sides = [
            (rig.from_vm, _cuts(cut_pvm, 1400)),
            (lambda frame: rig.from_peer(frame, 1), _cuts(cut_svm, 1300)),
        ]
        for send, cuts in sides if pvm_first else reversed(sides):
            for start, end in pairwise(cuts):
                send(segment(1001 + start, stream[start:end], ack=5001))
        frames = rig.to_client()
        assert payload(frames) == stream
        assert all(sums_are_right(f) for f in frames)


def test_different_bytes_never_leave_and_are_told() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, b"you are #1", ack=5001))
        rig.from_peer(segment(1001, b"you are #2", ack=5001), 1)
        assert rig.to_client() == []
        (event,) = rig.plane.mismatches()
        assert event.flow == "tcp 192.0.2.10:80 > 192.0.2.1:4711"
        assert (event.offset, event.reason) == (1011, "mismatch")
        assert event.pvm_digest != event.svm_digest


def test_mismatch_leaves_by_the_flush_of_a_later_epoch() -> None:
    with established() as rig:
        sent = segment(1001, b"you are #1", ack=5001)
        rig.from_vm(sent)
        rig.from_peer(segment(1001, b"you are #2", ack=5001), 1)
        rig.plane.set_turn(1, Phase.TURNING)
        rig.from_vm(segment(1011, b" now", ack=5001))
        rig.plane.set_turn(2, Phase.TURNING)
        rig.plane.set_turn(2, Phase.OPEN)
        assert rig.to_client() == []
        assert rig.plane.flush().emitted == 2
        assert payload(rig.to_client()) == b"you are #1 now"
        rig.from_vm(segment(1015, b"next", ack=5001))
        rig.from_peer(segment(1015, b"next", ack=5001), 2)
        assert payload(rig.to_client()) == b"next"


def test_a_flush_releases_nothing_of_the_epoch_that_goes_on() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, b"not yet", ack=5001))
        rig.from_vm(datagram(b"nor this"))
        assert rig.plane.flush().emitted == 0
        assert rig.to_client() == []
        assert rig.plane.held().frames == 2


def test_turning_releases_nothing() -> None:
    """The checkpoint is armed: equal output of the old SVM proves nothing any more."""
    with established() as rig:
        rig.from_peer(segment(1001, b"equal", ack=5001), 1)
        rig.plane.set_turn(1, Phase.TURNING)
        rig.from_vm(segment(1001, b"equal", ack=5001))
        assert rig.to_client() == []
        assert rig.count("cmp-pvm", "hold", "turning") == 1


def test_turning_releases_no_ack_no_datagram_and_no_arp() -> None:
    with established() as rig:
        rig.from_peer(datagram(b"pong"), 1)
        rig.plane.set_turn(1, Phase.TURNING)
        rig.from_vm(segment(1001, ack=5001))
        rig.from_vm(datagram(b"pong"))
        rig.from_vm(Ether(src=VM_MAC, dst=CLIENT_MAC) / ARP(op=2, psrc="192.0.2.10"))
        assert rig.to_client() == []
        assert rig.plane.held().frames == 3


def test_turning_moves_nothing_of_a_flow() -> None:
    """The SVM may have been loaded already: what it says now is not of the epoch it names."""
    from colo_ebpf.datapath.maps import dump

    with established() as rig:
        (before,) = dump.flows(rig._pins)
        for epoch in (1, 2):
            rig.plane.set_turn(epoch, Phase.TURNING)
            rig.from_peer(segment(1001, b"early", ack=5400), epoch)
            assert rig.count("cmp-svm", "drop", "turning") == epoch
        (after,) = dump.flows(rig._pins)
        for name in ("epoch", "svm_next", "verified", "anchor", "floor"):
            assert after[name] == before[name], name


def test_note_of_a_past_epoch_verifies_nothing() -> None:
    with established() as rig:
        rig.from_peer(segment(1001, b"past", ack=5001), 1)
        rig.plane.set_turn(2, Phase.OPEN)
        rig.from_vm(segment(1001, b"past", ack=5001))
        rig.from_peer(segment(1001, b"past", ack=5001), 1)
        assert rig.to_client() == []
        assert rig.count("cmp-svm", "drop", "stale-epoch") == 1


def test_newer_epoch_on_the_link_sets_turning() -> None:
    with established() as rig:
        rig.from_peer(segment(1001, b"x", ack=5001), 2)
        assert rig.plane.turn().phase is Phase.TURNING
        rig.from_peer(segment(1001, b"x", ack=5001), 0)
        assert rig.count("cmp-svm", "drop", "stale-epoch") == 1


def test_ack_waits_for_the_svm() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, ack=6000))
        assert rig.to_client() == []
        rig.from_peer(segment(1001, ack=5500), 1)
        (frame,) = rig.to_client()
        assert frame[TCP].ack == 5500
        assert sums_are_right(frame)
        rig.from_peer(segment(1001, ack=6000), 1)
        assert [f[TCP].ack for f in rig.to_client()] == [6000]
        assert rig.plane.held().frames == 0


def test_ack_of_the_past_svm_is_no_floor() -> None:
    """A load rolls the SVM back: what the old one had received the new one has not."""
    with established() as rig:
        rig.from_peer(segment(1001, ack=9000), 1)
        rig.plane.set_turn(2, Phase.OPEN)
        rig.from_vm(segment(1001, ack=9000))
        assert rig.to_client() == []
        assert rig.count("cmp-pvm", "hold", "ack-floor") == 1


def test_payload_leaves_with_its_ack_lowered_to_the_floor() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, b"data", ack=6000, window=1000))
        rig.from_peer(segment(1001, b"data", ack=5400, window=2000), 1)
        (frame,) = rig.to_client()
        assert (frame[TCP].ack, bytes(frame[TCP].payload)) == (5400, b"data")
        assert frame[TCP].window == 1000 + (6000 - 5400) // 4
        assert sums_are_right(frame)


def test_window_edge_is_the_smaller_of_both() -> None:
    with established() as rig:
        rig.from_peer(segment(1001, ack=5001, window=10), 1)
        rig.from_vm(segment(1001, ack=5001, window=1000))
        (frame,) = rig.to_client()
        assert frame[TCP].window == 10
        assert sums_are_right(frame)


def test_fin_where_the_other_continues_is_a_mismatch() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, b"end", ack=5001, flags="FA"))
        rig.from_peer(segment(1001, b"end\0", ack=5001), 1)
        assert rig.to_client() == []
        assert len(rig.plane.mismatches()) == 1


def test_fin_of_both_leaves() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, b"end", ack=5001, flags="FA"))
        rig.from_peer(segment(1001, b"end", ack=5001), 1)
        assert rig.to_client() == []
        rig.from_peer(segment(1004, ack=5001, flags="FA"), 1)
        assert [str(f[TCP].flags) for f in rig.to_client()] == ["FA"]


def test_reset_waits_for_the_svms() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, ack=5001, flags="R"))
        assert rig.to_client() == []
        rig.from_peer(segment(1001, ack=5001, flags="R"), 1)
        assert [str(f[TCP].flags) for f in rig.to_client()] == ["R"]


def test_retransmission_of_verified_bytes_passes_and_of_held_ones_is_dropped() -> None:
    with established() as rig:
        for _ in range(2):
            rig.from_vm(segment(1001, b"held", ack=5001))
        assert rig.count("cmp-pvm", "drop", "held-again") == 1
        rig.from_peer(segment(1001, b"held", ack=5001), 1)
        assert payload(rig.to_client()) == b"held"
        rig.from_vm(segment(1001, b"held", ack=5001))
        assert payload(rig.to_client()) == b"held"


def test_sequence_wrap() -> None:
    with established(isn=0xFFFFFFF0) as rig:
        first = 0xFFFFFFF1
        rig.from_vm(segment(first, b"a" * 20, ack=5001))
        rig.from_vm(segment((first + 20) % 2**32, b"b" * 20, ack=5001))
        rig.from_peer(segment(first, b"a" * 20 + b"b" * 20, ack=5001), 1)
        assert payload(rig.to_client()) == b"a" * 20 + b"b" * 20


def test_datagrams_are_a_multiset() -> None:
    with Rig() as rig:
        rig.pair()
        for data in (b"one", b"two", b"two"):
            rig.from_peer(datagram(data, ident=9), 1)
        for data in (b"two", b"one", b"two", b"two"):
            rig.from_vm(datagram(data))
        out = [bytes(f[UDP].payload) for f in rig.to_client()]
        assert out == [b"two", b"one", b"two"]
        assert rig.plane.held().frames == 1
        sent = datagram(b"later")
        rig.from_vm(sent)
        rig.from_peer(datagram(b"later", ident=7), 1)
        assert [bytes(f) for f in rig.to_client()] == [bytes(sent)]


def test_a_datagram_of_a_past_epoch_verifies_nothing() -> None:
    with established() as rig:
        rig.from_peer(datagram(b"pong"), 1)
        rig.plane.set_turn(2, Phase.OPEN)
        rig.from_vm(datagram(b"pong"))
        assert rig.to_client() == []


def test_a_datagram_noted_long_ago_verifies_nothing() -> None:
    with established() as rig:
        timeout_ns = rig.plane._conf.dgram_timeout_ns
        rig.from_peer(datagram(b"pong"), 1)
        try:
            rig.plane._conf.dgram_timeout_ns = 1
            rig.plane._write_conf()
            rig.from_vm(datagram(b"pong"))
            assert rig.to_client() == []
        finally:
            rig.plane._conf.dgram_timeout_ns = timeout_ns
            rig.plane._write_conf()


def test_arp_passes_only_while_the_link_is_heard() -> None:
    arp = Ether(src=VM_MAC, dst=CLIENT_MAC) / ARP(psrc="192.0.2.10", pdst="192.0.2.1")
    with Rig() as rig:
        rig.pair()
        rig.from_vm(arp)
        assert len(rig.to_client()) == 1
        rig.plane.set_pairing(None)
        rig.from_vm(arp)
        assert rig.to_client() == []
        assert rig.count("cmp-pvm", "drop", "link-silent") == 1


def test_silent_link_stops_everything() -> None:
    with established() as rig:
        rig.from_peer(segment(1001, b"equal", ack=5001), 1)
        rig.plane._set_live(0, 0)
        rig.from_vm(segment(1001, b"equal", ack=5001))
        rig.from_vm(segment(1006, ack=5001))
        assert rig.to_client() == []


def test_heard_a_moment_later_on_another_cpu_is_heard() -> None:
    """The link's frames are handled elsewhere: by the time the clock is compared with when the peer
    was heard, it may have been heard again."""
    with established() as rig:
        rig.from_peer(segment(1001, b"equal", ack=5001), 1)
        rig.plane._set_live(LiveWord.HEARD_NS, boot_ns() + 10**9)
        rig.from_vm(segment(1001, b"equal", ack=5001))
        assert payload(rig.to_client()) == b"equal"


def test_pairing_compares_and_releases_nothing() -> None:
    with established() as rig:
        rig.plane.set_mode(Mode.PAIRING)
        rig.from_peer(segment(1001, b"equal", ack=5001), 1)
        rig.from_vm(segment(1001, b"equal", ack=5001))
        assert rig.to_client() == []
        rig.plane.set_mode(Mode.PRIMARY)
        assert rig.plane.flush().emitted == 1
        assert payload(rig.to_client()) == b"equal"


def test_pairing_lets_no_second_copy_out_either() -> None:
    with established() as rig:
        rig.plane.set_mode(Mode.PAIRING)
        for _ in range(2):
            rig.from_vm(segment(1001, b"waits", ack=5001))
        assert rig.to_client() == []
        assert rig.count("cmp-pvm", "drop", "held-again") == 1


def test_solo_flushes_all_and_passes() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, b"held", ack=5001))
        rig.plane.set_mode(Mode.SOLO)
        assert rig.plane.flush().left == 0
        rig.from_vm(segment(1005, b"next", ack=5001))
        assert payload(rig.to_client()) == b"heldnext"


def test_a_fresh_vm_finds_nothing_of_the_one_before() -> None:
    """What was held for it would leave at the next takeover; what was known would be an anchor."""
    with established() as rig:
        rig.from_vm(segment(1001, b"never verified", ack=5009))
        rig.from_vm(segment(1015, ack=5050))
        rig.from_vm(datagram(b"never verified"))
        rig.to_client()
        assert rig.plane.held().frames == 3
        rig.plane.set_mode(Mode.WITHHOLD)
        asyncio.run(rig.plane.forget())
        assert rig.plane.held().frames == 0
        live = rig.plane.live()
        assert (live["held"], live["flows"]) == (0, 0)
        rig.plane.set_mode(Mode.SOLO)
        assert rig.plane.flush().emitted == 0
        rig.from_vm(segment(1001, b"another VM", ack=5001))
        assert payload(rig.to_client()) == b"another VM"
        rig.plane.set_turn(2, Phase.OPEN)
        rig.plane.set_mode(Mode.PRIMARY)
        rig.from_vm(segment(1011, b"later", ack=5040))
        assert rig.to_client() == []
        rig.from_peer(segment(1011, b"later", ack=5001), 2)
        (out,) = rig.to_client()
        assert (out[TCP].ack, bytes(out[TCP].payload)) == (5001, b"later")


def test_withheld_and_unconfigured_let_nothing_out() -> None:
    with Rig() as rig:
        rig.from_vm(datagram(b"early"))
        rig.pair(mode=Mode.WITHHOLD)
        rig.from_vm(datagram(b"withheld"))
        assert rig.to_client() == []


def test_frames_of_another_pairing_count_for_nothing() -> None:
    with established() as rig:
        rig.from_vm(segment(1001, b"mine", ack=5001))
        rig.from_peer(segment(1001, b"mine", ack=5001), 1, vni=78)
        assert rig.to_client() == []
        assert rig.count("cmp-svm", "drop", "not-ours") == 1


def test_full_store_drops_tcp_and_a_checkpoint_heals() -> None:
    with Rig(slots=16) as rig:
        rig.pair()
        rig.from_client(request(5000, flags="S"))
        for i in range(24):
            rig.from_vm(datagram(bytes([i])))
        assert rig.count("cmp-pvm", "drop", "store-full") > 0
        rig.plane.set_turn(2, Phase.OPEN)
        assert rig.plane.flush().left == 0
        assert len(rig.to_client()) == 16


def test_a_flush_takes_all_of_a_part_whatever_the_frames_say() -> None:
    """A piece at a time. What it sends stands where it was told the place to begin at."""
    with Rig() as rig:
        rig.pair()
        rig.from_client(request(5000, flags="S"))
        for i in range(200):
            rig.from_vm(datagram(bytes([i])))
        rig.plane.set_turn(2, Phase.OPEN)
        report = rig.plane.flush()
        assert (report.emitted, report.left) == (200, 0)
        left = [bytes(frame)[-1] for frame in rig.to_client()]
        assert left == list(range(200))


def test_a_slot_is_looked_for_in_every_stretch_of_the_store() -> None:
    with established(slots=512) as rig:
        store, head = rig.map("colo_hold"), rig.plane._live(LiveWord.HOLD_HEAD)
        *taken, free = ((head + stretch * 32) % 512 for stretch in range(16))
        taken.append(256 + head % 256)  # of the last part
        for number in taken:
            slot = Slot(state=SlotState.FILLING)
            store.set(struct.pack("=I", number), bytes(slot))
        rig.from_vm(segment(1001, b"data", ack=5001))
        assert [number for number, _ in held_slots(store)] == [free]


def test_a_segment_that_finds_no_room_is_dropped_never_let_out() -> None:
    """It is hashed all the same: after a checkpoint the guest's resending passes."""
    stream = bytes(i % 251 for i in range(24 * 100))
    with established(slots=16) as rig:
        for start in range(0, len(stream), 100):
            rig.from_vm(segment(1001 + start, stream[start : start + 100], ack=5001))
        assert rig.to_client() == []
        assert rig.count("cmp-pvm", "drop", "store-full") == 8
        rig.plane.set_turn(2, Phase.OPEN)
        assert rig.plane.flush().emitted == 16
        for start in range(1600, len(stream), 100):
            rig.from_vm(segment(1001 + start, stream[start : start + 100], ack=5001))
        assert payload(rig.to_client()) == stream


def test_many_held_frames_leave_in_order() -> None:
    with established() as rig:
        stream = bytes(i % 251 for i in range(100 * 100))
        for i in range(100):
            rig.from_vm(segment(1001 + 100 * i, stream[100 * i : 100 * i + 100], ack=5001))
        for start in range(0, 10000, 1400):
            rig.from_peer(segment(1001 + start, stream[start : start + 1400], ack=5001), 1)
        assert payload(rig.to_client()) == stream


def test_flows_and_held_frames_can_be_looked_at_without_a_daemon() -> None:
    from colo_ebpf.datapath.maps import dump

    with established() as rig:
        rig.from_vm(segment(1001, b"hello", ack=5001))
        (flow,) = dump.flows(rig._pins)
        assert flow["flow"] == "tcp 192.0.2.10:80 > 192.0.2.1:4711"
        assert (flow["pvm_next"], flow["svm_next"], flow["verified"]) == (1006, 1001, 1001)
        assert (flow["floor"], flow["held"], flow["flags"]) == (5001, 1, ["anchored"])
        (frame,) = dump.held(rig._pins)
        assert (frame["kind"], frame["end"], frame["epoch"]) == ("stream", 1006, 1)
        assert frame["age_ms"] >= 0
