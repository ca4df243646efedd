# SPDX-License-Identifier: GPL-2.0-only
"""Long frames of the PVM in the delay line: they leave as they came, or are held as others are.

On the real line a frame comes round every some ten microseconds. Where a test has to know that it
is in the line, the line is cut, and the frame's return is BPF_PROG_TEST_RUN.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from colo_ebpf.clock import boot_ns
from colo_ebpf.datapath.bpf import abi, syscalls
from colo_ebpf.datapath.maps.dump import held_slots
from colo_ebpf.datapath.net import delay_line, netdev
from colo_ebpf.errors import AttachError
from colo_ebpf.model import Mode, Phase
from tests.bpf.frames import payload, request, segment, stream, sums_are_right
from tests.bpf.rig import Rig, established

CUT, CUTS = 300, 10
DATA = stream(CUT * CUTS)
LONG = segment(1001, DATA, ack=5001)
MARK = 0xC5000000
SHOT, REDIRECT = 2, 7
Wrap = Callable[[Packet], Packet]
LATE_NS = 11_000_000  # beyond COLO_PARK_NS
LOST_NS = 150_000_000  # beyond COLO_PARK_LOST_NS
ROUNDS = 32  # COLO_PARK_ROUNDS
BEHIND = segment(1001 + len(DATA), DATA, ack=5001)
_PRIORITY = 32  # in struct __sk_buff


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A connection both VMs have accepted."""
    with established() as made:
        yield made


@pytest.fixture
def cut(rig: Rig) -> Iterator[Rig]:
    """The same; what goes into the delay line does not come out."""
    netdev.set_down("vx0-out")
    try:
        yield rig
    finally:
        netdev.set_up("vx0-out")
        rig.map("colo_hold").clear()  # what was lost
        rig.plane._set_live(abi.LiveWord.HELD, 0)


def _slots(rig: Rig) -> list[tuple[int, abi.Slot]]:
    return held_slots(rig.map("colo_hold"))


def _kinds(rig: Rig) -> list[str]:
    return [abi.SlotKind(slot.kind).name for _, slot in _slots(rig)]


def _send(rig: Rig, frame: Packet = LONG) -> int:
    """The PVM sends a long frame, which is parked. Returns its slot."""
    known = {number for number, _ in _slots(rig)}
    rig.from_vm_offloaded(frame, CUT)
    (number,) = {n for n, s in _slots(rig) if s.kind == abi.SlotKind.PARKED} - known
    return number


def _age(rig: Rig, number: int, by_ns: int) -> None:
    """It came so long ago."""
    table, key = rig.map("colo_hold"), struct.pack("=I", number)
    slot = abi.Slot.from_buffer_copy(table.get(key) or b"")
    slot.at_ns = boot_ns() - by_ns
    table.set(key, bytes(slot))


def _look(rig: Rig, number: int, frame: Packet, age_ns: int) -> syscalls.TestRun:
    """The frame, which came so long ago however slow this test is, is at the end of the line."""
    context, raw = bytearray(192), bytes(frame)
    struct.pack_into("=I", context, 8, MARK | (number + 1))
    struct.pack_into("=I", context, 164, CUTS)
    struct.pack_into("=I", context, 176, CUT)
    _age(rig, number, age_ns)  # last: what is collected meanwhile makes it older
    return syscalls.test_run(rig.plane.programs["colo_park"], raw, context=bytes(context))


def _come_out(rig: Rig, number: int, frame: Packet = LONG, age_ns: int = 0) -> tuple[int, Packet]:
    """The same: the action, and the frame as the program left it."""
    run = _look(rig, number, frame, age_ns)
    return run.retval, Ether(run.data_out)


def _queue(rig: Rig, number: int, frame: Packet = LONG) -> abi.Line:
    """The same of one that came just now and goes round once more: where it waits."""
    run = _look(rig, number, frame, 0)
    assert run.retval == REDIRECT
    return abi.Line(*struct.unpack_from("=I", run.context, _PRIORITY))


# ---- on the line ----


@pytest.fixture
def line() -> Iterator[Rig]:
    """The same connection; the SVM's frames come as large as its NIC took them."""
    with Rig(large=True) as made:
        made.let_the_wire_cut(False)
        made.pair()
        _accept(made)
        yield made


def _accept(rig: Rig, wrap: Wrap = lambda frame: frame) -> None:
    syn_ack = segment(1000, ack=5001, flags="SA", options=[("WScale", 2)])
    rig.from_vm(wrap(syn_ack))
    rig.from_peer(wrap(syn_ack), 1)
    rig.to_client()


def test_it_leaves_as_the_one_frame_it_came_as(line: Rig) -> None:
    line.from_both_offloaded(LONG, LONG, CUT)
    (frame,) = line.to_client()
    assert bytes(frame[TCP].payload) == DATA
    assert line.count("park", "pass", "verified") == 1
    assert line.plane.held().frames == 0


def test_it_leaves_with_a_closed_window(line: Rig) -> None:
    """The SVM opens it: then the client is told, by an ACK that follows the frame."""
    answers = [segment(1001, DATA, ack=5001, window=window) for window in (20_000, 0)]
    line.from_both_offloaded(*answers, CUT)
    (frame,) = line.to_client()
    assert (bytes(frame[TCP].payload), frame[TCP].window) == (DATA, 0)
    assert line.count("park", "pass", "verified") == 1
    line.from_peer(segment(1001 + len(DATA), ack=5001, window=9_000), 1)
    (frame,) = line.to_client()
    assert (frame[TCP].seq, bytes(frame[TCP].payload)) == (1001 + len(DATA), b"")
    assert (frame[TCP].ack, frame[TCP].window) == (5001, 9_000)
    assert sums_are_right(frame)
    assert line.plane.held().frames == 0


def test_what_the_svm_does_not_say_is_held_after_a_while(rig: Rig) -> None:
    rig.from_vm_offloaded(LONG, CUT)
    assert rig.to_client() == []
    assert rig.count("park", "hold", "unverified") == 1
    assert _kinds(rig) == ["STREAM"] * CUTS
    rig.from_peer(segment(1001, DATA[:1200], ack=5001), 1)
    frames = rig.to_client()
    assert payload(frames) == DATA[:1200]
    assert all(sums_are_right(f) for f in frames)
    rig.from_peer(segment(2201, DATA[1200:2400], ack=5001), 1)
    rig.from_peer(segment(3401, DATA[2400:], ack=5001), 1)
    assert payload(rig.to_client()) == DATA[1200:]
    assert rig.plane.held().frames == 0


def test_what_differs_never_leaves(line: Rig) -> None:
    line.events()
    line.from_both_offloaded(LONG, segment(1001, DATA[:-1] + b"x", ack=5001), CUT)
    assert line.to_client() == []
    assert "mismatch" in line.events()
    assert _kinds(line) == ["STREAM"] * CUTS


def test_what_comes_behind_it_leaves_behind_it(line: Rig) -> None:
    more = segment(1001 + len(DATA), b"and more", ack=5001)
    line.from_vm_offloaded(LONG, CUT)
    line.from_vm(more)
    line.from_peer_offloaded(LONG, CUT)
    line.from_peer(more, 1)
    frames = line.to_client()
    assert payload(frames) == DATA + b"and more"
    assert line.plane.held().frames == 0


def test_several_leave_in_their_order(line: Rig) -> None:
    data = stream(8 * len(DATA))
    long = [
        segment(1001 + start, data[start : start + len(DATA)], ack=5001)
        for start in range(0, len(data), len(DATA))
    ]
    for frame in long:
        line.from_vm_offloaded(frame, CUT)
    for frame in long:
        line.from_peer_offloaded(frame, CUT)
    assert payload(line.to_client()) == data
    assert line.plane.held().frames == 0


def test_one_with_a_vlan_tag_keeps_it(line: Rig) -> None:
    def tagged(frame: Packet) -> Packet:
        return Ether(src=frame.src, dst=frame.dst) / Dot1Q(vlan=7) / frame.payload

    _accept(line, tagged)
    line.from_both_offloaded(tagged(LONG), tagged(LONG), CUT)
    (frame,) = line.to_client()
    assert (frame[Dot1Q].vlan, bytes(frame[TCP].payload)) == (7, DATA)
    assert line.count("park", "pass", "verified") == 1


def test_a_short_one_is_copied_at_once(rig: Rig) -> None:
    rig.from_vm_offloaded(segment(1001, DATA[: 3 * CUT], ack=5001), CUT)
    assert _kinds(rig) == ["STREAM"] * 3


def test_without_a_line_it_is_copied_at_once(rig: Rig) -> None:
    conf = rig.plane._conf
    index, conf.park_ifindex = conf.park_ifindex, 0
    rig.plane._write_conf()
    try:
        rig.from_vm_offloaded(LONG, CUT)
    finally:
        conf.park_ifindex = index
        rig.plane._write_conf()
    assert _kinds(rig) == ["STREAM"] * CUTS


def test_a_kernel_without_htb_has_no_line(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AttachError("tc: Specified qdisc kind is unknown")

    monkeypatch.setattr(delay_line, "create", refuse)
    assert rig.plane.wiring.make_devices().line == 0
    monkeypatch.undo()
    assert rig.plane.wiring.make_devices().line == netdev.index_of("vx0-in")


# ---- at the end of the line ----


def _said(rig: Rig) -> None:
    """The SVM has produced it all."""
    for start in range(0, len(DATA), 1000):
        rig.from_peer(segment(1001 + start, DATA[start : start + 1000], ack=5001), 1)


def test_it_goes_round_until_it_is_verified(cut: Rig) -> None:
    number = _send(cut)
    assert _come_out(cut, number)[0] == REDIRECT
    assert cut.count("park", "hold", "parked") == 1
    _said(cut)
    assert _come_out(cut, number)[0] == REDIRECT
    assert cut.count("park", "pass", "verified") == 1
    assert _slots(cut) == []


def test_nothing_comes_between_the_first_and_what_is_behind(cut: Rig) -> None:
    first, second = _send(cut), _send(cut, BEHIND)
    assert _queue(cut, first) is abi.Line.FIRST
    assert _queue(cut, second, BEHIND) is abi.Line.LATE  # what is before it had gone round


def test_the_first_does_not_keep_other_flows_waiting(cut: Rig) -> None:
    first, second = _send(cut), _send(cut, BEHIND)
    cut.change_flows(rounds=ROUNDS - 1)
    assert [_queue(cut, first) for _ in range(2)] == [abi.Line.FIRST, abi.Line.LATE]
    _said(cut)
    _come_out(cut, first)
    assert cut.count("park", "pass", "verified") == 1
    assert _queue(cut, second, BEHIND) is abi.Line.FIRST


def test_the_line_has_a_queue_for_each_class(rig: Rig) -> None:
    argv = ["tc", "-d", "class", "show", "dev", "vx0-in"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"class htb (1:\w) parent 1:ff leaf \w+: prio (\d)", shown))
    frames = set(abi.Line) - {abi.Line.BEAT}
    assert {f"1:{line & 0xFFFF:x}" for line in frames} == set(found)
    assert min(found, key=lambda one: found[one]) == f"1:{abi.Line.FIRST & 0xFFFF:x}"


def test_a_line_that_is_made_again_keeps_what_waits_in_it(rig: Rig) -> None:
    def handles() -> list[str]:
        argv = ["tc", "qdisc", "show", "dev", "vx0-in"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()

    before = handles()
    delay_line.create("vx0-in", "vx0-out", 1500, 30)
    assert handles() == before


def test_it_is_not_let_out_while_the_link_is_silent(cut: Rig) -> None:
    number = _send(cut)
    _said(cut)
    cut.silence()
    _come_out(cut, number)
    assert cut.count("park", "pass", "verified") == 0
    assert _kinds(cut) == ["PARKED"]


@pytest.mark.parametrize("mode", [Mode.WITHHOLD, Mode.SECONDARY])
def test_one_whose_vm_is_entitled_to_nothing_ends_here(cut: Rig, mode: Mode) -> None:
    number = _send(cut)
    _said(cut)
    cut.plane.set_mode(mode)
    assert _come_out(cut, number)[0] == SHOT
    assert cut.count("park", "drop", "withheld") == 1
    assert _slots(cut) == []


def test_solo_lets_it_out(cut: Rig) -> None:
    number = _send(cut)
    cut.plane.set_mode(Mode.SOLO)
    assert _come_out(cut, number)[0] == REDIRECT
    assert cut.count("park", "pass", "flushed") == 1
    assert _slots(cut) == []


def test_a_loaded_checkpoint_lets_it_out(cut: Rig) -> None:
    number = _send(cut)
    cut.plane.set_turn(1, Phase.TURNING)
    _come_out(cut, number)
    assert cut.count("park", "hold", "parked") == 1
    cut.plane.set_turn(2, Phase.OPEN)
    assert cut.plane.flush().emitted == 0  # it has not come back
    assert _come_out(cut, number)[0] == REDIRECT
    assert cut.count("park", "pass", "flushed") == 1
    assert _slots(cut) == []


def test_a_loaded_checkpoint_lets_nothing_out_while_the_link_is_silent(cut: Rig) -> None:
    number = _send(cut)
    cut.plane.set_turn(2, Phase.OPEN)
    cut.silence()
    _come_out(cut, number)
    assert cut.count("park", "pass", "flushed") == 0
    assert _kinds(cut) == ["PARKED"]


def test_held_across_a_turn_it_is_of_the_epoch_it_came_in(cut: Rig) -> None:
    number = _send(cut)
    cut.plane.set_turn(1, Phase.TURNING)
    cut.plane.set_turn(2, Phase.TURNING)
    cut.change_flows(head=0)  # as if another frame were before it
    _come_out(cut, number, age_ns=LATE_NS)
    assert {slot.epoch for _, slot in _slots(cut)} == {1}
    assert len(_slots(cut)) == CUTS


def test_the_verified_part_leaves_where_the_svm_stands_inside(cut: Rig) -> None:
    number = _send(cut)
    cut.from_peer(segment(1001, DATA[: 4 * CUT], ack=5001), 1)
    assert cut.flow().verified == 1001
    _come_out(cut, number, age_ns=LATE_NS)
    assert cut.flow().verified == 1001 + 4 * CUT
    assert payload(cut.to_client()) == DATA[: 4 * CUT]
    assert len(_slots(cut)) == CUTS - 4


def test_nothing_is_verified_where_the_svm_stands_elsewhere(cut: Rig) -> None:
    number = _send(cut)
    cut.from_peer(segment(1001, b"?" + DATA[1 : 4 * CUT], ack=5001), 1)
    _come_out(cut, number, age_ns=LATE_NS)
    assert cut.flow().verified == 1001
    assert cut.to_client() == []


def test_it_acknowledges_no_more_than_the_svm_has(cut: Rig) -> None:
    eager = segment(1001, DATA, ack=5400)
    number = _send(cut, eager)
    _said(cut)
    action, frame = _come_out(cut, number, eager)
    assert (action, frame[TCP].ack) == (REDIRECT, 5001)


def test_its_retransmission_ends_here(cut: Rig) -> None:
    number = _send(cut)
    cut.from_vm(segment(1001, DATA[:CUT], ack=5001))
    assert cut.count("cmp-pvm", "drop", "held-again") == 1
    assert [n for n, _ in _slots(cut)] == [number]


def test_a_second_one_waits_for_the_first(cut: Rig) -> None:
    first, second = _send(cut), _send(cut, BEHIND)
    _said(cut)
    for start in range(0, len(DATA), 1000):
        part = segment(4001 + start, DATA[start : start + 1000], ack=5001)
        cut.from_peer(part, 1)
    _come_out(cut, second, BEHIND)
    assert cut.count("park", "pass", "verified") == 0
    _come_out(cut, first)
    _come_out(cut, second, BEHIND)
    assert cut.count("park", "pass", "verified") == 2


def test_the_cuts_of_a_first_one_stay_before_a_second(cut: Rig) -> None:
    first, second = _send(cut), _send(cut, BEHIND)
    _come_out(cut, first, age_ns=LATE_NS)
    _come_out(cut, second, BEHIND, age_ns=LATE_NS)
    _said(cut)
    for start in range(0, len(DATA), 1000):
        cut.from_peer(segment(4001 + start, DATA[start : start + 1000], ack=5001), 1)
    frames = cut.to_client()
    assert payload(frames) == DATA + DATA
    assert [f[TCP].seq for f in frames] == sorted(f[TCP].seq for f in frames)


def test_one_of_a_connection_that_began_anew_ends_here(cut: Rig) -> None:
    number = _send(cut)
    cut.from_client(request(9000, flags="S"))
    cut.from_vm(segment(500_000, ack=9001, flags="SA", options=[("WScale", 2)]))
    assert _come_out(cut, number)[0] == SHOT
    assert cut.count("park", "drop", "old") == 1
    assert number not in [n for n, _ in _slots(cut)]


@pytest.mark.parametrize("mark", [0, MARK, MARK | 700, 0xC0100001])
def test_a_frame_of_nobody_ends_here(cut: Rig, mark: int) -> None:
    _send(cut)
    _said(cut)
    assert cut.run("colo_park", LONG, mark).retval == SHOT
    assert cut.count("park", "drop", "old") == 1


def test_another_frame_does_not_take_its_place(cut: Rig) -> None:
    number = _send(cut)
    _said(cut)
    other = segment(1001, DATA, ack=5001)
    other[TCP].dport = 4712
    assert _come_out(cut, number, other)[0] == SHOT
    assert cut.count("park", "drop", "old") == 1


def test_one_that_was_lost_is_given_up(cut: Rig) -> None:
    number = _send(cut)
    cut.plane.flush()
    assert _kinds(cut) == ["PARKED"]
    _age(cut, number, LOST_NS)
    cut.plane.flush()
    assert _slots(cut) == []
    assert cut.plane.live()["held"] == 0
    cut.from_vm(segment(1001, DATA[:CUT], ack=5001))  # the PVM resends
    assert _kinds(cut) == ["STREAM"]
    cut.plane.set_turn(2, Phase.OPEN)
    cut.plane.flush()
    assert payload(cut.to_client()) == DATA[:CUT]


def _just_now(rig: Rig) -> None:
    """Something was parked, however slow this test is: on another CPU, a moment from now."""
    rig.change_flows(parked_ns=boot_ns() + 60 * 10**9)


def _later(rig: Rig) -> None:
    """Nothing was parked for a while: a short frame is held."""
    rig.change_flows(parked_ns=0)


def test_one_that_was_lost_does_not_stop_what_is_behind(cut: Rig) -> None:
    number = _send(cut)
    _later(cut)
    cut.from_vm(segment(1001 + len(DATA), b"and more", ack=5001))
    _age(cut, number, LOST_NS)
    _said(cut)
    cut.from_peer(segment(1001 + len(DATA), b"and more", ack=5001), 1)
    assert payload(cut.to_client()) == b"and more"
    assert cut.plane.live()["held"] == 0


def test_what_is_behind_leaves_with_it(cut: Rig) -> None:
    number = _send(cut)
    _later(cut)
    cut.from_vm(segment(1001 + len(DATA), b"and more", ack=5001))
    _said(cut)
    cut.from_peer(segment(1001 + len(DATA), b"and more", ack=5001), 1)
    _come_out(cut, number)
    assert cut.count("park", "pass", "verified") == 1
    assert payload(cut.to_client()) == b"and more"  # the other has come out of a test run
    assert cut.plane.live()["held"] == 0


def test_a_short_one_behind_it_goes_the_same_way(cut: Rig) -> None:
    more = segment(1001 + len(DATA), b"and more", ack=5001)
    _send(cut)
    _just_now(cut)
    cut.from_vm(more)
    assert _kinds(cut) == ["PARKED", "PARKED"]


def test_what_is_verified_does_not_overtake_it(line: Rig) -> None:
    line.from_both_offloaded(LONG, LONG, CUT)
    more = segment(1001 + len(DATA), b"and more", ack=5001)
    line.from_peer(more, 1)
    _just_now(line)
    line.from_vm(more)
    assert payload(line.to_client()) == DATA + b"and more"
    assert line.count("park", "pass", "verified") == 2
