# SPDX-License-Identifier: GPL-2.0-only
"""When a beat may do without a decision: only time has passed, and no deadline with it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from colo_ebpf.control.checkpoint.primary import Cause
from colo_ebpf.control.core import idle_detector
from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.actions import Read, State, Swap
from colo_ebpf.control.decision.decide import decide
from colo_ebpf.control.decision.snapshot import Failure, Request, Snapshot
from colo_ebpf.control.peer.state import CHECKPOINT_WORDS, GREET_AFTER_NS, Path, PeerState, Speech
from colo_ebpf.model import OverlayUse, PlaneEvent, PlaneEventKind
from tests.sim.host import SEAL, Host
from tests.sim.test_pair import _check, _until_protected
from tests.sim.world import MS, TIMING, World
from tests.unit.test_decide import ACTIVE, HEARD, NOW, PAIRED, SILENT, A, B, _at, _silent

_LATER_NS = tuple(span * MS for span in (1, 20, 300, 5_000, 60_000, 3_600_000))


def _lasts(s: Snapshot) -> bool:
    return idle_detector.lasts(s, decide(s))


def _later(s: Snapshot, ns: int, management_age_ns: int) -> Snapshot:
    """The link was heard meanwhile."""
    peer = replace(s.peer, link_age_ns=HEARD, management_age_ns=management_age_ns)
    return replace(s, now_ns=s.now_ns + ns, peer=peer, plane_hears=not s.plane_hears)


def _vm(me: str, **change: Any) -> Snapshot:
    s = _at(me, PAIRED)
    assert s.vm is not None
    return replace(s, vm=replace(s.vm, **change))


def _peer(me: str, **change: Any) -> Snapshot:
    s = _at(me, PAIRED)
    assert s.peer.state is not None
    state = msgspec.structs.replace(s.peer.state, **change)
    return replace(s, peer=replace(s.peer, state=state))


def _bare(me: str) -> Snapshot:
    s = _at(me, PAIRED)
    return replace(s, peer=replace(s.peer, bare_ns=SILENT))


def _swap_failed() -> Failure:
    return Failure(Swap(PAIRED, record.claim(PAIRED, A)), "of the test", NOW)


@pytest.mark.parametrize("me", ["a", "b"])
@pytest.mark.parametrize("paused", [False, True])
def test_what_is_decided_of_a_pair_that_is_well_lasts(me: str, paused: bool) -> None:
    s = _at(me, PAIRED, paused=paused)
    decided = decide(s)
    assert idle_detector.lasts(s, decided)
    for ns in _LATER_NS:
        for management_age_ns in (HEARD, SILENT, ns):
            assert decide(_later(s, ns, management_age_ns)) == decided


@pytest.mark.parametrize("me", ["a", "b"])
@pytest.mark.parametrize("word", CHECKPOINT_WORDS)
def test_what_the_peer_says_of_turns_decides_nothing(me: str, word: str) -> None:
    decided = decide(_at(me, PAIRED))
    for epoch in (0, 1, 2, 77):
        assert decide(_peer(me, **{word: epoch})) == decided


@pytest.mark.parametrize("me", ["a", "b"])
@pytest.mark.parametrize(
    "change",
    [
        {"pending": record.claim(PAIRED, B)},
        {"failure": _swap_failed()},
        {"request": Request("t", NOW, B)},
        {"request": Request("t", NOW, A, overrides=PAIRED.generation)},
    ],
)
def test_nothing_lasts_while_anything_is_open(me: str, change: dict[str, Any]) -> None:
    assert not _lasts(_at(me, PAIRED, **change))


@pytest.mark.parametrize(
    "s",
    [
        *(_silent(_at(me, PAIRED)) for me in "ab"),
        *(_silent(_at(me, PAIRED), management=HEARD) for me in "ab"),
        *(_vm(me, alive=False) for me in "ab"),
        *(_vm(me, fit=False) for me in "ab"),
        *(_vm(me, off_at_s=1) for me in "ab"),
        _vm("b", colo_exit_ns=NOW),
        *(_peer(me, generation=PAIRED.generation + 1) for me in "ab"),
        *(_peer(me, fit=False) for me in "ab"),
        *(_peer(me, hears=False) for me in "ab"),
        *(_bare(me) for me in "ab"),
        *(_at(me, PAIRED, plane_hears=False) for me in "ab"),
        *(_at(me, ACTIVE) for me in "ab"),
        *(_at(me, None) for me in "ab"),
    ],
)
def test_what_may_end_by_itself_does_not_last(s: Snapshot) -> None:
    assert not _lasts(s)


def test_a_peer_whose_daemon_is_away_is_looked_at() -> None:
    s = _at("a", PAIRED)
    assert not _lasts(replace(s, peer=replace(s.peer, away_since_ns=NOW)))


def test_a_step_that_rests_is_not_forgotten() -> None:
    """The decision itself has none to run just now."""
    s = _peer("a", generation=PAIRED.generation + 1)
    resting = replace(s, failure=Failure(Read(), "of the test", NOW))
    assert decide(resting).step is None
    assert not _lasts(resting)


# --- the core -----------------------------------------------------------------------------


def _pair() -> tuple[World, Host, Host]:
    world = World(1, bad_loads=0.0)
    a, b = Host(world, "a"), Host(world, "b")
    for host in (a, b):
        host.start_daemon()
    assert _until_protected(world, 20_000, lambda: _check(world))
    world.run(2_000 * MS, lambda: None)
    return world, a, b


def _is_calm(host: Host) -> bool:
    assert host.core is not None
    return host.core.idle_detector.holds(host.now_ns)


def test_a_pair_at_rest_decides_nothing() -> None:
    world, a, b = _pair()
    for host in (a, b):
        host.beats = host.calm_beats = 0
    world.run(5_000 * MS, lambda: None)
    for host in (a, b):
        assert 30 < host.beats < (60 if host is a else 110), "the replica looks at its overlays"
        assert host.calm_beats == host.beats


def test_a_mismatch_is_announced_before_anything_is_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the peer arms, and QEMU is asked, in the same way."""
    _, a, b = _pair()
    assert a.core is not None
    assert b.core is not None
    told: list[str] = []
    speech = Speech(SEAL)
    for host in (a, b):
        monkeypatch.setattr(host, "publish", lambda copies, host=host: told.append(host.name))
        monkeypatch.setattr(host, "command", lambda vm, command: told.append(command.what.value))
        monkeypatch.setattr(host.core, "cycle", lambda now_ns: told.append("decides"))
    epoch = a.core.checkpoints.primary.epoch
    event = PlaneEvent(PlaneEventKind.MISMATCH, a.now_ns, epoch, "", 0, 0, 0, "mismatch")
    a.core.plane_event(event, a.now_ns)
    for speaker, listener in ((a, b), (b, a)):
        assert speaker.core is not None
        assert listener.core is not None
        monkeypatch.setattr(listener.core.peer, "_number", -1)
        monkeypatch.setattr(listener.core.peer._paths[Path.LINK], "number", -1)
        said = speech.say(speaker.core.my_state())
        assert listener.core.peer_datagram(said, Path.LINK, listener.now_ns)
    assert told == ["a", "decides", "b", "decides", "trigger", "decides"]


def test_a_peer_that_falls_silent_is_looked_at_when_it_is_late_and_not_before() -> None:
    world, a, b = _pair()
    b.pause()
    assert a.core is not None
    timeout_ns = a.core.timing.peer_timeout_ns
    while a.now_ns - max(a.core.peer.link_heard_ns, a.plane.heard_ns) <= timeout_ns:
        assert _is_calm(a)
        world.run(MS, lambda: None)
    assert not _is_calm(a)
    world.run(100 * MS, lambda: None)
    assert a.core.decision.state is not State.PRIMARY or a.core.decision.step is not None


def _spans_ms(world: World, host: Host, count: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """From one to the next of the beats to come; in each the host speaks to the other daemon."""
    told, publish = [host.now_ns], host.publish

    def tell(copies: int) -> None:
        told.append(host.now_ns)
        publish(copies)

    monkeypatch.setattr(host, "publish", tell)
    while len(told) <= count:
        world.run(MS, lambda: None)
    return [(later - sooner) / MS for sooner, later in itertools.pairwise(told)]


_BEAT_MS, _LATE_MS = 50, 31  # of the simulation


def test_a_pair_at_rest_beats_in_every_third_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    world, a, _ = _pair()
    spans = _spans_ms(world, a, 31, monkeypatch)[1:]
    assert all(2 * _BEAT_MS < span <= 3 * _BEAT_MS + _LATE_MS for span in spans)
    assert max(spans) > 3 * _BEAT_MS - 1


def test_a_plane_that_does_not_beat_alone_is_never_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, a, _ = _pair()
    a.plane.beats_alone = False
    spans = _spans_ms(world, a, 20, monkeypatch)[1:]
    assert all(span <= _BEAT_MS + _LATE_MS for span in spans)


def test_what_is_new_is_said_in_three_heartbeats_more(monkeypatch: pytest.MonkeyPatch) -> None:
    world, a, _ = _pair()
    assert a.core is not None
    a.core.cycle(a.now_ns)
    spans = _spans_ms(world, a, 8, monkeypatch)
    assert all(span <= _BEAT_MS + _LATE_MS for span in spans[:4])
    assert all(span > 2 * _BEAT_MS for span in spans[4:])


@pytest.mark.parametrize("sooner", [True, False])
def test_no_deadline_is_slept_through(monkeypatch: pytest.MonkeyPatch, sooner: bool) -> None:
    """That of the peer's silence, and that of a frame nobody verifies."""
    _, a, _ = _pair()
    core = a.core
    assert core is not None
    now_ns, whole_ns = a.now_ns, 3 * TIMING.heartbeat_ns
    core.idle_detector.ends()
    core.idle_detector._left_out = 10
    assert core.idle_detector.next_beat_ns(now_ns) == now_ns + whole_ns
    due_ns = now_ns + whole_ns // 2 if sooner else now_ns - 1
    expected = due_ns if sooner else now_ns + whole_ns
    with monkeypatch.context() as patch:
        patch.setattr(core.idle_detector, "_sure_until_ns", due_ns)
        assert core.idle_detector.next_beat_ns(now_ns) == expected
    monkeypatch.setattr(core.checkpoints.patience, "due_ns", due_ns)
    assert core.idle_detector.next_beat_ns(now_ns) == expected


def test_a_pair_stays_one_while_heartbeats_are_lost_and_beacons_come() -> None:
    """All that go over the link, and every second one of those that go the other way."""
    world, a, b = _pair()
    record_before, send, sent = world.record, world.send, {"a": 0, "b": 0}

    def lossy(source: str, path: Path, datagram: bytes) -> None:
        if path is Path.MANAGEMENT:
            sent[source] += 1
            if sent[source] % 2:
                send(source, path, datagram)

    world.send = lossy  # type: ignore[method-assign]
    world.run(20_000 * MS, lambda: None)
    assert world.record is record_before
    for host in (a, b):
        assert host.core is not None
        assert host.core.decision.state in (State.PRIMARY, State.SECONDARY)


def test_a_refused_port_is_looked_at() -> None:
    world, a, b = _pair()
    b.kill_daemon()
    while _is_calm(a):
        world.run(MS, lambda: None)
    assert a.core is not None
    assert a.now_ns - a.core.peer.link_heard_ns <= a.core.timing.peer_timeout_ns
    assert a.core.peer.away_since_ns(a.now_ns) is not None


def test_overlays_that_fill_are_seen_although_nothing_else_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, a, b = _pair()
    assert b.vm is not None
    full = OverlayUse(0, 600 << 20, 1000 << 20, 100 << 20)
    monkeypatch.setattr(b.vm, "overlay_use", lambda: (full,))
    while _is_calm(b):
        world.run(MS, lambda: None)
    world.run(200 * MS, lambda: None)
    assert a.core is not None
    assert "peer" in {cause.value for cause in a.core.checkpoints.primary.by_cause}


@pytest.mark.parametrize(("room_mib", "looks"), [(100, 100), (800, 50), (100_000, 10)])
def test_overlays_are_looked_at_the_more_often_the_less_room_they_have(
    monkeypatch: pytest.MonkeyPatch, room_mib: int, looks: int
) -> None:
    """In five seconds."""
    world, _, b = _pair()
    assert b.core is not None
    seen: list[int] = []
    use = OverlayUse(0, 1 << 20, (room_mib << 20) + (1 << 20), 1 << 40)

    def overlay_use() -> tuple[OverlayUse, ...]:
        seen.append(b.now_ns)
        return (use,)

    monkeypatch.setattr(b.vm, "overlay_use", overlay_use)
    world.run(1_000 * MS, lambda: None)
    seen.clear()
    for _ in range(5_000):
        _is_calm(b)
        world.run(MS, lambda: None)
    assert looks * 0.8 <= len(seen) <= looks * 1.2


def test_a_new_run_of_the_peers_daemon_is_greeted_in_the_next_beat() -> None:
    world, a, b = _pair()
    b.pause()
    assert a.core is not None
    while min(a.core.peer.age_ns(path, a.now_ns) for path in Path) < GREET_AFTER_NS:
        world.run(MS, lambda: None)
    assert _is_calm(a)
    hello = Speech(SEAL).say(PeerState(vm="v", host="b", boot="another run"))
    a.core.peer_datagram(hello, Path.MANAGEMENT, a.now_ns)
    assert not _is_calm(a)


def test_loads_are_counted_although_nothing_else_happens() -> None:
    """A checkpoint nobody told of shows in the trace alone."""
    world, a, b = _pair()
    assert a.core is not None
    assert b.core is not None
    assert b.vm is not None
    a.core.checkpoints.primary.ask(Cause.OPERATOR, a.now_ns)
    a.core.cycle(a.now_ns)
    epoch = b.core.checkpoints.secondary.loaded
    while b.core.checkpoints.secondary.loaded in (0, epoch):
        world.run(MS, lambda: None)
    b.vm.loaded += 1
    world.run(2_000 * MS, lambda: None)
    assert "peer" in {cause.value for cause in a.core.checkpoints.primary.by_cause}
