# SPDX-License-Identifier: GPL-2.0-only
"""A plane beats by itself for a while: a beacon goes round in a class of the delay line."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from colo_ebpf.clock import boot_ns
from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.abi import LiveWord
from colo_ebpf.model import Mode, Phase, VmRole
from tests.bpf.rig import Rig
from tests.capabilities import require

_COPIES = 2
_HEARTBEAT_S = 0.03
_PATIENCE_S = 5.0
_LONG_NS = 60_000_000_000


def _until(found: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not found():
        assert time.monotonic() < deadline, what


def _queue() -> dict[str, int]:
    """Of the beacons, as tc tells it."""
    argv = ["tc", "-s", "-j", "qdisc", "show", "dev", "vx0-in"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    place = f"1:{abi.Line.BEAT & 0xFFFF:x}"
    (found,) = [one for one in json.loads(shown) if one.get("parent") == place]
    return {word: found[word] for word in ("qlen", "drops")}


def _sent(rig: Rig) -> int:
    return rig.count("beacon", "link", "beacon")


def _rounds(rig: Rig, rounds: int) -> None:
    goal = _sent(rig) + rounds * _COPIES
    _until(lambda: _sent(rig) >= goal, "the plane does not beat by itself")


def _begin(rig: Rig) -> None:
    rig.plane.beat(boot_ns())
    rig.plane._set_live(LiveWord.BEAT_UNTIL_NS, boot_ns() + _LONG_NS)


def _beating(role: VmRole, mtu: int = 1500) -> Iterator[Rig]:
    require("root", "bpf")
    with Rig(role, mtu=mtu) as rig:
        rig.pair(7, Mode.PRIMARY if role is VmRole.PRIMARY else Mode.SECONDARY)
        yield rig
        rig.plane._set_live(LiveWord.BEAT_UNTIL_NS, 0)
        _until(lambda: not _queue()["qlen"], "a beacon stays in the line")


@pytest.fixture(params=[VmRole.PRIMARY, VmRole.SECONDARY])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    yield from _beating(request.param)


@pytest.fixture(params=[3700, 9000])
def jumbo(request: pytest.FixtureRequest) -> Iterator[tuple[Rig, int]]:
    for rig in _beating(VmRole.PRIMARY, request.param):
        yield rig, request.param


def test_once_begun_it_goes_on(rig: Rig) -> None:
    _begin(rig)
    rig.plane.set_turn(8, Phase.OPEN)
    _rounds(rig, 4)
    heard = rig.to_peer()
    assert {len(frame) for _, frame in heard} == {1514}
    assert [tag for tag, _ in heard][:2] == [7] * _COPIES
    assert [tag for tag, _ in heard][-2:] == [8] * _COPIES, "the epoch it leaves in"


def test_it_beats_once_in_a_heartbeat(rig: Rig) -> None:
    _begin(rig)
    _rounds(rig, 1)
    before = time.monotonic()
    _rounds(rig, 5)
    assert time.monotonic() - before > 4 * _HEARTBEAT_S * 0.99


def test_a_jumbo_beacon_is_as_large_as_the_link_has_to_carry(jumbo: tuple[Rig, int]) -> None:
    """BPF_PROG_TEST_RUN takes a page at most; the first one and those that go round are larger."""
    rig, mtu = jumbo
    _begin(rig)
    _rounds(rig, 3)
    heard = rig.to_peer()
    assert {len(frame) for _, frame in heard} == {mtu + 14}
    assert {bytes(frame)[18:] for _, frame in heard} == {bytes(mtu - 4)}, "nothing of the kernel's"


def test_the_daemon_does_not_begin_what_goes_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(rig.plane, "beacon", lambda: begun.append(1))
    now_ns = boot_ns()
    rig.plane._set_live(LiveWord.BEAT_NS, now_ns)
    rig.plane.beat(now_ns + 2 * 30_000_000 - 1)
    assert begun == []
    rig.plane.beat(now_ns + 2 * 30_000_000)
    assert begun == [1], "what has got lost is begun anew"


def test_it_stops_when_the_daemon_has_been_away_for_long(rig: Rig) -> None:
    _begin(rig)
    _rounds(rig, 2)
    now_ns = boot_ns()
    rig.plane._set_live(LiveWord.BEAT_UNTIL_NS, now_ns)
    _until(lambda: rig.plane._live(LiveWord.BEAT_NS) >= now_ns, "it has stopped before")
    assert not _queue()["qlen"], "that was the last one"


def test_the_daemon_says_how_long_it_goes_on(rig: Rig) -> None:
    now_ns = boot_ns()
    rig.plane.beat(now_ns)
    assert rig.plane._live(LiveWord.BEAT_UNTIL_NS) == now_ns + 5 * 30_000_000


def test_who_serves_alone_and_offers_a_pair_is_heard(rig: Rig) -> None:
    """Before anything is copied each side is to know that the other hears it."""
    rig.plane.set_mode(Mode.SOLO)
    _begin(rig)
    _rounds(rig, 3)


def test_who_has_no_pair_any_more_does_not_go_on(rig: Rig) -> None:
    _begin(rig)
    _rounds(rig, 1)
    rig.plane.set_pairing(None)
    _until(lambda: rig.count("beacon", "drop", "no-pair") > 0, "it goes on")
    assert not _queue()["qlen"]


def test_two_of_them_become_one(rig: Rig) -> None:
    _begin(rig)
    drops = _queue()["drops"]
    rig.plane.beacon()
    rig.plane.beacon()
    _rounds(rig, 3)
    after = _queue()["drops"]
    assert after > drops
    _rounds(rig, 3)
    assert _queue()["drops"] == after


def test_without_a_line_every_beat_is_the_daemons(rig: Rig) -> None:
    conf = rig.plane._conf
    index, conf.park_ifindex = conf.park_ifindex, 0
    rig.plane._write_conf()
    try:
        assert not rig.plane.beats_alone
        for _ in range(3):
            rig.plane.beat(boot_ns())
    finally:
        conf.park_ifindex = index
        rig.plane._write_conf()
    assert _sent(rig) == 3 * _COPIES
    assert not _queue()["qlen"]
