# SPDX-License-Identifier: GPL-2.0-only
"""More connections come and go than the tables have entries: the newest are served."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import TCP
from scapy.packet import Packet

from colo_ebpf.clock import boot_ns
from colo_ebpf.datapath.bpf.abi import FlowFlag
from colo_ebpf.model import Mode, Phase, VmRole
from tests.bpf.frames import request, segment
from tests.bpf.rig import Rig
from tests.capabilities import require

FLOWS = 256  # entries of each table
SKEW = 70000
SECOND = 1_000_000_000


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf")


def _of(number: int, frame: Packet) -> Packet:
    """Of the client's connection with this number."""
    tcp = frame[TCP]
    if tcp.dport == 80:
        tcp.sport = 10000 + number
    else:
        tcp.dport = 10000 + number
    return frame


# ---- secondary: what the SVM's numbers are against the PVM's ----


@pytest.fixture
def secondary() -> Iterator[Rig]:
    """A secondary in an open epoch."""
    with Rig(VmRole.SECONDARY) as rig:
        rig.pair(3, Mode.SECONDARY)
        yield rig


def _opens(rig: Rig, number: int, epoch: int) -> None:
    rig.from_peer(_of(number, request(5000, flags="S")), epoch)
    rig.from_vm(_of(number, segment(1000 + SKEW, ack=5001, flags="SA")))
    rig.from_peer(_of(number, request(5001, ack=1001)), epoch)


def _is_translated(rig: Rig, number: int) -> bool:
    rig.to_peer()
    rig.from_vm(_of(number, segment(1001 + SKEW, b"x", ack=5001)))
    return [f[TCP].seq for _, f in rig.to_peer() if TCP in f] == [1001]


def test_the_newest_are_translated_however_many_came_before(secondary: Rig) -> None:
    for number in range(3 * FLOWS):
        _opens(secondary, number, 3)
        assert _is_translated(secondary, number), f"connection {number}"
        secondary.to_vm()


def test_one_that_goes_on_stays_translated(secondary: Rig) -> None:
    _opens(secondary, 0, 3)
    for number in range(1, 3 * FLOWS):
        _opens(secondary, number, 3)
        secondary.to_vm()
        if number % 16 == 0:
            assert _is_translated(secondary, 0), f"after {number} others"


def test_those_of_past_epochs_take_nobodys_place(secondary: Rig) -> None:
    for epoch in (3, 4):
        secondary.plane.set_turn(epoch, Phase.OPEN)
        for number in range(FLOWS - 16):
            _opens(secondary, 1000 * epoch + number, epoch)
            secondary.to_vm()
    assert _is_translated(secondary, 4000 + FLOWS - 17)


# ---- primary: flows ----


def _known(rig: Rig, idle_ns: int, **fields: int) -> None:
    rig.change_flows(seen_ns=boot_ns() - idle_ns, **{"c_known": 1, **fields})


@pytest.mark.parametrize(
    "fields", [{"flags": FlowFlag.PVM_FIN}, {"flags": FlowFlag.RESET}, {"c_known": 0}]
)
def test_a_crowded_table_does_not_keep_what_has_ended_for_a_minute(fields: dict[str, int]) -> None:
    with Rig() as rig:
        rig.pair()
        for number in range(FLOWS * 3 // 4):
            rig.from_client(_of(number, request(1, flags="S")))
        for first in range(1000, 1000 + 3 * FLOWS, FLOWS // 8):
            _known(rig, 5 * SECOND, **fields)
            for number in range(first, first + FLOWS // 8):
                rig.from_client(_of(number, request(1, flags="S")))
        assert rig.count("mir-cli", "drop", "table-full") == 0


@pytest.mark.parametrize(
    ("idle_ns", "fields"),
    [
        (2 * SECOND, {"flags": FlowFlag.PVM_FIN}),  # a FIN whose answer was lost may come again
        (30 * SECOND, {"flags": FlowFlag.ANCHORED}),  # it lives
    ],
)
def test_but_keeps_what_may_still_be_heard_of(idle_ns: int, fields: dict[str, int]) -> None:
    with Rig() as rig:
        rig.pair()
        for number in range(FLOWS * 3 // 4):
            rig.from_client(_of(number, request(1, flags="S")))
        _known(rig, idle_ns, **fields)
        for number in range(1000, 1000 + FLOWS // 8):
            rig.from_client(_of(number, request(1, flags="S")))
        assert rig.count("age", "drop", "ended") == 0
