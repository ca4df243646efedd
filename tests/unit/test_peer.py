# SPDX-License-Identifier: GPL-2.0-only
"""What counts as a word of the peer: authentic, fresh, of this VM and host, of this version."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_ebpf.control.peer.envelope import VERSION, Seal
from colo_ebpf.control.peer.pause import Pause
from colo_ebpf.control.peer.state import (
    AHEAD,
    GREET_AFTER_NS,
    VOUCHED_NS,
    Path,
    PeerState,
    PeerView,
    Speech,
    words,
)
from colo_ebpf.errors import Refusal, RefusedError

SEAL = Seal(b"0123456789abcdef")
RUN = SEAL.begin()
MS = 1_000_000


def _view(boot: str = "mine") -> PeerView:
    return PeerView(vm="web", host="b", boot=boot, seal=SEAL, started_ns=0)


def _said(seq: int = 1, *, boot: str = "theirs", echo: str = "mine", **more: object) -> bytes:
    fields: dict[str, object] = {"vm": "web", "host": "b", **more}
    return RUN.close(seq, words(PeerState(boot=boot, echo=echo, **fields)))  # type: ignore[arg-type]


def _spoilt(datagram: bytes) -> bytes:
    return datagram[:-1] + bytes((datagram[-1] ^ 1,))


def test_the_same_on_both_paths_is_news_once() -> None:
    view = _view()
    assert view.receive(_said(), Path.LINK, 10 * MS)
    assert not view.receive(_said(), Path.MANAGEMENT, 12 * MS)
    assert view.age_ns(Path.LINK, 20 * MS) == 10 * MS
    assert view.age_ns(Path.MANAGEMENT, 20 * MS) == 8 * MS


@pytest.mark.parametrize(
    ("datagram", "why", "says"),
    [
        (b"GET / HTTP/1.0\r\n\r\n" + bytes(40), Refusal.MALFORMED, "something else sends"),
        (
            b"COLO" + bytes((VERSION + 1,)) + bytes(80),
            Refusal.VERSION,
            f"theirs {VERSION + 1}, ours {VERSION}",
        ),
        (_spoilt(_said()), Refusal.KEY, "key files of the two hosts differ"),
        (_said(vm="db"), Refusal.VM, "theirs 'db', ours 'web'"),
        (_said(host="c"), Refusal.HOST, "it says 'c', not 'b'"),
    ],
)
def test_what_is_not_for_us_is_told_once_and_changes_nothing(
    datagram: bytes, why: Refusal, says: str
) -> None:
    told: list[str] = []
    view = _view()
    view.report = told.append
    for _ in range(3):
        assert not view.receive(datagram, Path.LINK, 5 * MS)
    assert view.refusals == {why: 3}
    assert view.state is None
    assert len(told) == 1
    assert says in told[0]


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    view = _view()
    assert not view.receive(data, Path.LINK, MS)
    assert not view.receive(RUN.close(1, b"")[:37] + data, Path.LINK, MS)


@pytest.mark.parametrize("until_s", [-1, 253_402_300_800, (1 << 64) - 1])
def test_a_pause_that_no_calendar_has_is_no_word_of_a_peer(until_s: int) -> None:
    view = _view()
    assert not view.receive(_said(pause=Pause(1, True, until_s)), Path.LINK, MS)
    assert view.refusals == {Refusal.MALFORMED: 1}


def test_a_recording_of_the_past_is_worth_nothing() -> None:
    view = _view()
    assert not view.receive(_said(9, echo="an earlier run"), Path.LINK, MS)
    assert view.state is None
    assert view.echo == "theirs"
    assert view.receive(_said(10), Path.LINK, 2 * MS)
    assert not view.receive(_said(10), Path.LINK, 3 * MS)
    assert not view.receive(_said(4), Path.LINK, 3 * MS)
    assert view.refusals[Refusal.STALE] == 2


def test_a_new_run_of_the_peer_replaces_the_old_one_for_good() -> None:
    view = _view()
    view.receive(_said(500, boot="first"), Path.LINK, MS)
    view.receive(_said(1, boot="second", echo=""), Path.LINK, 900 * MS)
    assert view.echo == "second"
    assert view.receive(_said(2, boot="second"), Path.LINK, 901 * MS)
    assert not view.receive(_said(501, boot="first"), Path.LINK, 902 * MS)
    assert view.state is not None
    assert view.state.boot == "second"


def test_a_refused_port_means_a_daemon_away_for_a_while() -> None:
    view = _view()
    view.receive(_said(), Path.LINK, MS)
    view.nobody_listens(Path.LINK, 50 * MS)
    assert view.away_since_ns(60 * MS) == 50 * MS
    assert view.away_since_ns(60_000 * MS) is None
    view.receive(_said(2), Path.LINK, 70 * MS)
    assert view.away_since_ns(71 * MS) is None


def test_frames_are_missed_only_where_heartbeats_come() -> None:
    """And both begin anew together: behind a silence the first state may come before a frame."""
    view, within_ns = _view(), 150 * MS
    for number, at_ms in enumerate(range(10, 300, 20)):
        view.plane_heard_ns = (at_ms - 5) * MS
        view.receive(_said(number), Path.LINK, at_ms * MS)
    assert view.hears_plane(within_ns, 400 * MS)
    view.receive(_said(100), Path.LINK, 900 * MS)  # the first for long
    assert view.hears_plane(within_ns, 900 * MS)
    assert view.frames_until_ns == 900 * MS
    for number, at_ms in enumerate(range(920, 1_060, 20), 101):
        view.receive(_said(number), Path.LINK, at_ms * MS)
    assert not view.hears_plane(within_ns, 1_060 * MS)
    view.plane_heard_ns = 1_061 * MS
    assert view.hears_plane(within_ns, 1_062 * MS)


def test_without_a_first_frame_nothing_is_heard() -> None:
    view = _view()
    view.receive(_said(), Path.LINK, 10 * MS)
    assert not view.hears_plane(150 * MS, 20 * MS)
    view.plane_heard_ns = 21 * MS
    assert view.hears_plane(150 * MS, 25 * MS)
    view.listen_anew(30 * MS)
    assert not view.hears_plane(150 * MS, 35 * MS), "it was of another pairing"
    assert view.frames_until_ns == 30 * MS


def test_how_long_it_says_that_it_does_not_hear_us() -> None:
    view = _view()
    view.receive(_said(1, hears=True), Path.LINK, 10 * MS)
    assert view.unheard_ns(500 * MS) == 0
    view.receive(_said(2, hears=False), Path.MANAGEMENT, 20 * MS)
    view.receive(_said(3, hears=False), Path.LINK, 60 * MS)
    assert view.unheard_ns(100 * MS) == 80 * MS
    view.receive(_said(1, hears=False, boot="restarted"), Path.LINK, 200 * MS)
    assert view.unheard_ns(210 * MS) == 10 * MS
    view.receive(_said(2, hears=True, boot="restarted"), Path.LINK, 220 * MS)
    assert view.unheard_ns(230 * MS) == 0


def test_the_longest_silence_is_that_of_one_run_of_the_daemon() -> None:
    view = _view()
    for seq, at_ms in enumerate((10, 30, 95, 100)):
        view.receive(_said(seq), Path.LINK, at_ms * MS)
    assert view.longest_ns(Path.LINK) == 65 * MS
    assert view.longest_ns(Path.MANAGEMENT) == 0
    view.receive(_said(0, boot="restarted"), Path.LINK, 900 * MS)
    assert view.echo != "restarted" or view.longest_ns(Path.LINK) == 0
    view.receive(_said(1, boot="restarted"), Path.LINK, 920 * MS)
    view.receive(_said(2, boot="restarted"), Path.LINK, 945 * MS)
    assert view.longest_ns(Path.LINK) <= 25 * MS


def test_saying_the_same_again_is_heard_and_no_news() -> None:
    view, speech = _view(), Speech(SEAL)
    state = PeerState(vm="web", host="b", boot="theirs", echo="mine")
    first, second = speech.say(state), speech.say(state)
    assert first != second
    assert view.receive(first, Path.LINK, MS)
    known = view.state
    assert not view.receive(second, Path.LINK, 30 * MS)
    assert view.age_ns(Path.LINK, 31 * MS) == MS
    assert view.state is known
    assert not view.receive(first, Path.LINK, 32 * MS)
    assert view.refusals == {Refusal.STALE: 1}
    assert view.receive(speech.say(msgspec.structs.replace(state, fit=False)), Path.LINK, 50 * MS)


def test_what_was_said_in_between_is_said_anew() -> None:
    view, speech = _view(), Speech(SEAL)
    well = PeerState(vm="web", host="b", boot="theirs", echo="mine")
    for state in (well, msgspec.structs.replace(well, fit=False), well):
        assert view.receive(speech.say(state), Path.LINK, MS)
        assert view.state == state


def test_every_byte_is_sealed() -> None:
    datagram = _said(258)
    assert SEAL.open(datagram)[1] == 258
    for at in range(len(datagram)):
        changed = bytearray(datagram)
        changed[at] ^= 1
        with pytest.raises(RefusedError):
            SEAL.open(bytes(changed))


@pytest.mark.parametrize("key", [b"another key......", b"0123456789abcde", b"k" * 500])
def test_only_the_same_key_opens_it(key: bytes) -> None:
    assert Seal(key).open(Seal(key).begin().close(1, b"said"))[1:] == (1, b"said")
    with pytest.raises(RefusedError, match="wrong key"):
        SEAL.open(Seal(key).begin().close(1, b"said"))
    with pytest.raises(RefusedError, match="wrong key"):
        Seal(key + b"k").open(Seal(key).begin().close(1, b"said"))


def test_nobody_else_can_read_what_is_said() -> None:
    datagram = _said(state="PRIMARY", instance="0123456789")
    for word in (b"web", b"theirs", b"PRIMARY", b"0123456789", b"generation"):
        assert word not in datagram


def test_no_run_repeats_what_another_has_sealed() -> None:
    """Not even with the same number: each has a key of its own, and so no nonce is used twice."""
    one, two = SEAL.begin(), SEAL.begin()
    assert one.close(1, b"said")[29:] != two.close(1, b"said")[29:]
    assert SEAL.open(one.close(1, b"said"))[0] is SEAL.open(one.close(2, b"more"))[0]


def test_strange_runs_do_not_crowd_out_those_that_are_known() -> None:
    known, _, _ = SEAL.open(RUN.close(1, b"said"))
    for _ in range(20):
        with pytest.raises(RefusedError):
            SEAL.open(Seal(b"another key......").begin().close(1, b"said"))
    assert SEAL.open(RUN.close(2, b"said"))[0] is known


def test_what_is_repeated_is_opened_ahead_and_no_more_is_believed_for_that() -> None:
    """Lost, overtaken and doubled ones, of several rows of what was sealed at once."""
    view, speech, rng = _view(), Speech(SEAL), random.Random(7)
    state = PeerState(vm="web", host="b", boot="theirs", echo="mine")
    said = [speech.say(state) for _ in range(5 * AHEAD)]
    assert len(set(said)) == len(said)
    newest, stale = -1, 0
    for at_ms in range(400):
        number = min(newest + rng.choice((-3, 0, 1, 1, 1, 2, 40)), len(said) - 1)
        if number < 0:
            continue
        view.receive(said[number], Path.LINK, at_ms * MS)
        if number > newest:
            newest = number
            assert view.age_ns(Path.LINK, at_ms * MS) == 0
        else:
            stale += 1
    assert stale
    assert view.refusals == {Refusal.STALE: stale}
    assert view.state == state


def test_a_recording_has_nothing_opened_ahead() -> None:
    view, speech = _view(), Speech(SEAL)
    state = PeerState(vm="web", host="b", boot="theirs", echo="mine")
    said = [speech.say(state) for _ in range(60)]
    for datagram in said[30:]:
        view.receive(datagram, Path.LINK, MS)
    ready = view._numbers
    for datagram in said[:20]:
        assert not view.receive(datagram, Path.LINK, 2 * MS)
    assert view._numbers is ready
    assert view.refusals == {Refusal.STALE: 20}


def test_frames_of_the_other_plane_speak_for_its_daemon_for_a_while() -> None:
    view = _view()
    view.plane_heard_ns = 5 * MS
    view.receive(_said(1), Path.MANAGEMENT, 10 * MS)
    assert view.link_heard_ns == 5 * MS
    view.receive(_said(1), Path.LINK, 12 * MS)
    assert view.link_heard_ns == 12 * MS
    view.plane_heard_ns = 90 * MS
    assert view.age_ns(Path.LINK, 100 * MS) == 10 * MS
    assert view.age_ns(Path.MANAGEMENT, 100 * MS) == 90 * MS
    view.plane_heard_ns = 90_000 * MS
    assert view.link_heard_ns == 12 * MS + VOUCHED_NS, "its daemon is silent"
    view.receive(_said(2), Path.MANAGEMENT, 90_010 * MS)
    assert view.link_heard_ns == 90_000 * MS


def test_a_plane_that_is_heard_keeps_no_new_run_of_the_daemon_waiting() -> None:
    """The new run sends the beacons."""
    view = _view()
    view.receive(_said(500, boot="first"), Path.LINK, MS)
    view.plane_heard_ns = MS + GREET_AFTER_NS
    view.receive(_said(1, boot="second", echo=""), Path.LINK, MS + GREET_AFTER_NS)
    assert view.echo == "second"


def test_until_its_daemon_is_heard_silence_counts_from_our_start() -> None:
    """The planes have known each other for long."""
    view = _view()
    view.started_ns, view.plane_heard_ns = 70_000 * MS, 70_010 * MS
    assert view.age_ns(Path.LINK, 70_020 * MS) == 20 * MS
    view.receive(_said(1), Path.MANAGEMENT, 70_030 * MS)
    assert view.age_ns(Path.LINK, 70_040 * MS) == 30 * MS
    view.plane_heard_ns = 69_000 * MS
    assert view.age_ns(Path.LINK, 70_040 * MS) == 40 * MS
