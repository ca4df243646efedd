# SPDX-License-Identifier: GPL-2.0-only
"""No program ends before it has counted something: nothing happens to a packet unseen."""

from __future__ import annotations

import itertools
import re
import struct

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from colo_ebpf.datapath.bpf import loader
from colo_ebpf.datapath.bpf.image import INSTRUCTION_BYTES, Image, Program
from colo_ebpf.datapath.bpf.pinned_programs import CALLS
from colo_ebpf.lab.bed import CACHE
from colo_ebpf.model import Mode
from tests.bpf.by_bcc import SIZES
from tests.bpf.exits import uncounted
from tests.bpf.frames import beacon, datagram, farewell, segment
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig
from tests.capabilities import require

CALLED_ONLY = tuple(name for name in CALLS if name not in ("colo_cmp_pvm", "colo_cmp_svm"))
FRAMES: dict[str, Packet | bytes] = {
    "beacon": beacon(),
    "farewell": farewell(),
    "zeros": bytes(64),
    "arp": Ether(src=VM_MAC, dst=CLIENT_MAC) / ARP(op=2, psrc="192.0.2.10"),
    "ping": Ether(src=VM_MAC, dst=CLIENT_MAC) / IP(src="192.0.2.10", dst="192.0.2.1") / ICMP(),
    "datagram": datagram(b"x"),
    "syn": segment(1000, flags="S"),
    "bytes": segment(1001, b"hello", ack=5001),
    "reset": segment(1001, flags="R"),
    "cut": bytes(segment(1001, b"hello", ack=5001))[:50],
}
# Without a caller, one has not been counted for, and the other does not know where to go on.
NEED_A_CALLER = ("colo_drain", "colo_enter")
RUN = [one for names in loader.PROGRAMS.values() for one in names if one not in NEED_A_CALLER]
MARKS = (0, 0xC0100001, 0xC0100100, 0xC5000001)  # released, a carrier, a parked frame


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf")


def _images() -> list[Image]:
    return loader.images(loader.shipped(SIZES), CACHE)


def test_every_way_through_every_program_counts() -> None:
    assert uncounted(_images(), CALLS, CALLED_ONLY) == {}


def test_one_that_does_not_is_found() -> None:
    plain = b"".join(struct.pack("<BBhi", *one) for one in ((0xB7, 0, 0, 2), (0x95, 0, 0, 0)))
    program = Program("odd", plain, (), (b"", 0), (b"", 0))
    image = Image("odd.c", "GPL", b"", (), (program,))
    assert uncounted([image], (), ()) == {"odd": [len(plain) // INSTRUCTION_BYTES - 1]}


def _counted(rig: Rig) -> int:
    return sum(row.packets for row in rig.plane.counters())


@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.name.lower())
def test_every_run_counts(mode: Mode) -> None:
    with Rig() as rig:
        rig.pair(mode=mode)
        for program, mark in itertools.product(RUN, MARKS):
            for name, frame in FRAMES.items():
                before = _counted(rig)
                rig.run(program, frame, mark)
                assert _counted(rig) > before, (program, name, mark)


def test_a_name_is_a_struct_or_a_function_or_a_map() -> None:
    directory = loader.source_directory()
    text = "\n".join(path.read_text() for path in sorted(directory.rglob("*.[ch]")))
    tags = set(re.findall(r"^(?:struct|enum) (\w+) \{", text, re.MULTILINE))
    made = r"^(?:static __always_inline [^=;(]*?|int )(\w+)\("
    functions = set(re.findall(made, text, re.MULTILINE))
    tables = r"^BPF_\w+\((?:\"\w+\", [\w ]+, [\w ]+, )?(\w+)"
    maps = set(re.findall(tables, text, re.MULTILINE))
    assert len(tags) > 50 and len(functions) > 200 and len(maps) > 20
    assert (tags & functions) | (tags & maps) | (functions & maps) == set()
