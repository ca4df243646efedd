# SPDX-License-Identifier: GPL-2.0-only
"""The same frames through QEMU's `colo-compare` and through the shipped programs.

Where both say the same, that is asserted.
Where they do not, docs/understand/differences-from-qemu.md has a
section with the case's title, and says why ours is right.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from colo_ebpf.bench.kernel.qemu_compare import NO_TIMEOUT, QemuCompare
from colo_ebpf.lab.frames import CLIENT, VM
from tests.bpf.frames import datagram, segment
from tests.bpf.rig import CLIENT_MAC, VM_MAC, Rig
from tests.capabilities import ROOT, require

Step = tuple[str, Packet]  # "P" or "S" and what it sends
_SYN_ACK = segment(1000, ack=5001, flags="SA", options=[("WScale", 2)])
_ETHER = Ether(src=VM_MAC, dst=CLIENT_MAC)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What left, as (flags, seq, payload) or as the datagram's payload; was a checkpoint asked?"""

    left: tuple[object, ...]
    checkpoint: bool


@dataclass(frozen=True, slots=True)
class Case:
    """Steps on a connection both have accepted, and what each makes of them."""

    title: str
    steps: tuple[Step, ...]
    qemu: Outcome
    ours: Outcome
    accepted: bool = True  # the connection exists already


def _says(frame: Packet) -> object:
    if TCP in frame:
        return (str(frame[TCP].flags), int(frame[TCP].seq), bytes(frame[TCP].payload))
    return bytes(frame[Raw].load) if Raw in frame else bytes(frame)


def seg(seq: int, data: bytes = b"", flags: str = "A", ack: int = 5001) -> Packet:
    """A segment of the connection."""
    return segment(seq, data, ack=ack, flags=flags)


def said(seq: int, data: bytes = b"", flags: str = "A") -> tuple[str, int, bytes]:
    """What the client would see of it."""
    return (flags, seq, data)


def both(*left: object, checkpoint: bool = False) -> dict[str, Outcome]:
    """QEMU and ours agree."""
    return {name: Outcome(left, checkpoint) for name in ("qemu", "ours")}


_A, _B, _AB = b"a" * 100, b"b" * 100, b"a" * 100 + b"b" * 100
_UDP6 = _ETHER / IPv6(src="2001:db8::10", dst="2001:db8::1") / UDP(sport=7, dport=9) / b"six"
_TAGGED = _ETHER / Dot1Q(vlan=7) / IP(src=VM, dst=CLIENT) / UDP(sport=7, dport=9) / b"tag"
_ECHO = _ETHER / IP(src=VM, dst=CLIENT) / ICMP(type=0, id=1, seq=2) / b"echo"


def _gre(ident: int) -> Packet:
    return _ETHER / IP(src=VM, dst=CLIENT, id=ident, proto=47) / b"gre gre gre"


AGREED = [
    Case("equal, PVM first", (("P", seg(1001, _A)), ("S", seg(1001, _A))), **both(said(1001, _A))),
    Case("equal, SVM first", (("S", seg(1001, _A)), ("P", seg(1001, _A))), **both(said(1001, _A))),
    Case(
        "cut differently",
        (("P", seg(1001, _AB)), ("S", seg(1001, _A)), ("S", seg(1101, _B))),
        **both(said(1001, _AB)),
    ),
    Case(
        "the PVM in two, the SVM in one",
        (("P", seg(1001, _A)), ("P", seg(1101, _B)), ("S", seg(1001, _AB))),
        **both(said(1001, _A), said(1101, _B)),
    ),
    Case(
        "different bytes",
        (("P", seg(1001, b"you are #1")), ("S", seg(1001, b"you are #2"))),
        **both(checkpoint=True),
    ),
    Case("only the PVM spoke", (("P", seg(1001, _A)),), **both()),
    Case("only the SVM spoke", (("S", seg(1001, _A)),), **both()),
    Case(
        "a copy of what was verified",
        (("P", seg(1001, _A)), ("S", seg(1001, _A)), ("P", seg(1001, _A)), ("S", seg(1101, _B))),
        **both(said(1001, _A), said(1001, _A)),
    ),
    Case("equal datagrams", (("P", datagram(b"x")), ("S", datagram(b"x"))), **both(b"x")),
    Case("a datagram alone", (("P", datagram(b"x")),), **both()),
    Case("equal echoes", (("P", _ECHO), ("S", _ECHO)), **both(b"echo")),
    Case(
        "a connection is accepted by both",
        (("P", _SYN_ACK), ("S", segment(71000, ack=5001, flags="SA", options=[("WScale", 2)]))),
        **both(said(1000, flags="SA")),
        accepted=False,
    ),
]

NOTHING = Outcome((), False)
DIFFERENT = [
    Case(
        "IPv6 is compared",
        (("P", _UDP6),),
        Outcome((b"six",), False),
        NOTHING,
    ),
    Case(
        "Frames with a VLAN tag are compared",
        (("P", _TAGGED),),
        Outcome((b"tag",), False),
        NOTHING,
    ),
    Case(
        "FIN is compared by its place",
        (("P", seg(1001, flags="FA")), ("S", seg(1001, _A))),
        Outcome((said(1001, flags="FA"),), False),
        Outcome((), True),
    ),
    Case(
        "RST waits for the SVM's",
        (("P", seg(1001, flags="RA")), ("S", seg(1001, ack=5001))),
        Outcome((said(1001, flags="RA"),), False),
        NOTHING,
    ),
    Case(
        "SYNs agree on what they answer",
        (("P", _SYN_ACK), ("S", segment(71000, ack=9001, flags="SA", options=[("WScale", 2)]))),
        Outcome((said(1000, flags="SA"),), False),
        NOTHING,
        accepted=False,
    ),
    Case(
        "SYNs agree on what they offer",
        (("P", _SYN_ACK), ("S", segment(71000, ack=5001, flags="SA"))),
        Outcome((said(1000, flags="SA"),), False),
        Outcome((), True),
        accepted=False,
    ),
    Case(
        "An ACK needs no counterpart",
        (("P", seg(1001, ack=5001)),),
        NOTHING,
        Outcome((said(1001),), False),
    ),
    Case(
        "An ACK waits until the SVM received as much",
        (("P", seg(1001, ack=9000)), ("S", seg(1001, ack=5001))),
        Outcome((said(1001),), False),
        NOTHING,
    ),
    Case(
        "Datagrams need not come in pairs",
        (("P", datagram(b"one")), ("P", datagram(b"two")), ("S", datagram(b"one"))),
        Outcome((), True),
        Outcome((b"one",), False),
    ),
    Case(
        "A datagram that differs is only late",
        (("P", datagram(b"one")), ("S", datagram(b"two"))),
        Outcome((), True),
        NOTHING,
    ),
    Case(
        "The IP header is each VM's own",
        (("P", _gre(1)), ("S", _gre(2))),
        Outcome((), True),
        Outcome((b"gre gre gre",), False),
    ),
]


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuCompare]:
    require("root", "bpf", "qemu")
    with QemuCompare(tmp_path_factory.mktemp("compare"), NO_TIMEOUT) as compare:
        yield compare


_PORTS = itertools.count(20000)  # QEMU forgets no connection: each case has one of its own


def _to_port(frame: Packet, port: int) -> bytes:
    other = frame.copy()
    for layer in (TCP, UDP):
        if layer in other:
            other[layer].dport = port
            del other[layer].chksum
    return bytes(other)


def _ask_qemu(qemu: QemuCompare, case: Case) -> Outcome:
    qemu.checkpoint()
    qemu.released()
    port = next(_PORTS)
    accepted: list[Step] = [("P", _SYN_ACK), ("S", _SYN_ACK)] if case.accepted else []
    for which, frame in accepted:
        (qemu.primary if which == "P" else qemu.secondary)(_to_port(frame, port))
        qemu.released()
    qemu.checkpoints_wanted()
    left: list[bytes] = []
    for which, frame in case.steps:
        (qemu.primary if which == "P" else qemu.secondary)(_to_port(frame, port))
        left += qemu.released()
    return Outcome(tuple(_says(Ether(one)) for one in left), qemu.checkpoints_wanted() > 0)


def _ask_ours(case: Case) -> Outcome:
    with Rig() as rig:
        rig.pair()
        if case.accepted:
            rig.from_vm(_SYN_ACK)
            rig.from_peer(_SYN_ACK, 1)
        rig.to_client()
        rig.events()
        left = []
        for which, frame in case.steps:
            if which == "P":
                rig.from_vm(frame)
            else:
                rig.from_peer(frame, 1)
            left += [_says(one) for one in rig.to_client()]
        return Outcome(tuple(left), "mismatch" in rig.events())


@pytest.mark.parametrize("case", AGREED, ids=lambda case: case.title)
def test_both_say_the_same(qemu: QemuCompare, case: Case) -> None:
    assert case.qemu == case.ours
    assert _ask_qemu(qemu, case) == case.qemu
    assert _ask_ours(case) == case.ours


@pytest.mark.parametrize("case", DIFFERENT, ids=lambda case: case.title)
def test_they_differ_and_the_list_says_why(qemu: QemuCompare, case: Case) -> None:
    assert case.qemu != case.ours
    assert _ask_qemu(qemu, case) == case.qemu
    assert _ask_ours(case) == case.ours


def test_the_list_of_differences_is_whole() -> None:
    text = (ROOT / "docs" / "understand" / "differences-from-qemu.md").read_text()
    listed = {line[3:] for line in text.splitlines() if line.startswith("## ")}
    assert listed == {case.title for case in DIFFERENT}


def _cuts(rng: random.Random, total: int) -> list[tuple[int, int]]:
    points = sorted({0, total, *(rng.randrange(1, total) for _ in range(rng.randrange(1, 9)))})
    return list(itertools.pairwise(points))


@pytest.mark.parametrize("seed", range(60))
def test_any_cut_of_the_same_stream(qemu: QemuCompare, seed: int) -> None:
    """Random segments on both sides, randomly interleaved; half of the streams differ in a byte."""
    rng = random.Random(seed)
    total = rng.randrange(20, 1400)
    stream = rng.randbytes(total)
    wrong = rng.randrange(total) if seed % 2 else None
    other = bytearray(stream)
    if wrong is not None:
        other[wrong] ^= 1 << rng.randrange(8)
    sides = {
        "P": [seg(1001 + a, stream[a:b]) for a, b in _cuts(rng, total)],
        "S": [seg(1001 + a, bytes(other[a:b])) for a, b in _cuts(rng, total)],
    }
    steps = []
    while sides["P"] or sides["S"]:
        which = rng.choice([name for name in "PS" if sides[name]])
        steps.append((which, sides[which].pop(0)))
    case = Case("random", tuple(steps), NOTHING, NOTHING)
    theirs, ours = _ask_qemu(qemu, case), _ask_ours(case)
    assert ours.checkpoint == (wrong is not None)
    assert theirs.checkpoint == ours.checkpoint
    received = b"".join(one[2] for one in ours.left if isinstance(one, tuple))
    if wrong is None:
        assert received == stream
        assert sorted(map(str, ours.left)) == sorted(map(str, theirs.left))
    else:
        assert received == stream[: len(received)]
        assert len(received) <= wrong
        assert all(one[1] - 1001 + len(one[2]) <= wrong for one in theirs.left)  # type: ignore[index]
