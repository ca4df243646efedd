# SPDX-License-Identifier: GPL-2.0-only
"""Beats and datagrams are served inside the loop's own wait; the loop is served all the same."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TypeVar

import pytest

from colo_ebpf.control.loop import BeatSelector, loop_of
from colo_ebpf.control.peer.state import Path
from colo_ebpf.control.peer.transport import Heartbeats, Wire

_T = TypeVar("_T")
_PERIOD_S = 0.001


def _later(last_ns: int) -> int:
    """When the beat after that one is due."""
    return last_ns + int(_PERIOD_S * 1e9)


def _run(selector: BeatSelector, work: Callable[[], Coroutine[None, None, _T]]) -> _T:
    with asyncio.Runner(loop_factory=lambda: loop_of(selector)) as runner:
        return runner.run(work())


def test_it_beats_until_it_is_put_to_rest() -> None:
    selector, beats = BeatSelector(), 0

    def beat(now_ns: int) -> bool:
        nonlocal beats
        beats += 1
        if beats == 3:
            selector.rest()
        return True

    async def run() -> int:
        await selector.beat(_later, beat)
        await asyncio.sleep(10 * _PERIOD_S)
        return beats

    assert _run(selector, run) == 3


def test_a_beat_that_fails_is_the_last_one() -> None:
    selector = BeatSelector()

    async def run() -> None:
        await selector.beat(_later, lambda now_ns: {}["nothing"])

    with pytest.raises(KeyError, match="nothing"):
        _run(selector, run)


def _rounds(selector: BeatSelector, beats: int, wanted: bool) -> int:
    """How often the loop got its turn while it beat so often."""
    rounds, left = 0, beats
    inner = selector.select

    def select(timeout: float | None = None) -> object:
        nonlocal rounds
        rounds += 1
        return inner(timeout)

    selector.select = select  # type: ignore[method-assign,assignment]

    def beat(now_ns: int) -> bool:
        nonlocal left
        left -= 1
        if not left:
            selector.rest()
        return wanted or not left

    async def run() -> None:
        await selector.beat(_later, beat)

    _run(selector, run)
    return rounds


def test_the_loop_has_its_turn_only_when_a_beat_may_have_left_work() -> None:
    assert _rounds(BeatSelector(), 20, wanted=True) >= 20
    assert _rounds(BeatSelector(), 20, wanted=False) < 10


def test_timers_and_descriptors_of_the_loop_are_served_while_every_beat_is_quiet() -> None:
    selector = BeatSelector()

    async def run() -> bytes:
        beats = selector.beat(_later, lambda now_ns: False)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            loop.call_later(20 * _PERIOD_S, theirs.send, b"late")
            said = await loop.sock_recv(ours, 10)
        assert not beats.done()
        return said

    assert _run(selector, run) == b"late"


def test_what_another_thread_asks_for_wakes_the_loop() -> None:
    selector = BeatSelector()

    async def run() -> int:
        selector.beat(_later, lambda now_ns: False)
        return await asyncio.to_thread(lambda: 7)

    assert _run(selector, run) == 7


def test_a_reader_that_fails_or_goes_away_stops_nothing() -> None:
    selector = BeatSelector()
    read: list[bytes] = []

    async def run() -> None:
        done = asyncio.get_running_loop().create_future()
        pairs = [socket.socketpair() for _ in range(2)]
        first, second = (ours for ours, _ in pairs)

        def fail() -> bool:
            read.append(first.recv(10))
            if len(read) == 1:
                raise ValueError("of the test")
            selector.ignore(first.fileno())
            selector.ignore(first.fileno())
            selector.listen(second.fileno(), end)
            return False

        def end() -> bool:
            done.set_result(None)
            selector.ignore(second.fileno())
            return True

        selector.listen(first.fileno(), fail)
        for text in (b"one", b"two", b"three"):
            pairs[0][1].send(text)
        pairs[1][1].send(b"end")
        await done
        for pair in pairs:
            for one in pair:
                one.close()

    _run(selector, run)
    assert b"".join(read).startswith(b"one")


def _heartbeats(
    selector: BeatSelector, mine: str, peers: str, port: int, heard: Callable[[bytes, Path], bool]
) -> Heartbeats:
    wires = (Wire(Path.LINK, mine, peers, port), Wire(Path.MANAGEMENT, mine, peers, port + 1))
    return Heartbeats(wires, selector, heard, lambda path: None)


def _until_heard(
    count: int, heard: list[tuple[bytes, Path]]
) -> tuple[asyncio.Future[None], Callable[[bytes, Path], bool]]:
    """Done once so many datagrams came; what takes them."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(datagram: bytes, path: Path) -> bool:
        heard.append((datagram, path))
        if len(heard) == count:
            done.set_result(None)
        return len(heard) == count

    return done, take


def test_a_datagram_goes_over_both_paths_and_is_heard_on_both() -> None:
    selector = BeatSelector()
    heard: list[tuple[bytes, Path]] = []

    async def run() -> None:
        done, take = _until_heard(4, heard)
        a = _heartbeats(selector, "127.0.0.8", "127.0.0.9", 17460, take)
        b = _heartbeats(selector, "127.0.0.9", "127.0.0.8", 17460, take)
        a.send(b"nobody listens yet")
        b.send(b"one")
        b.send(b"two")
        await done
        a.close()
        b.close()

    _run(selector, run)
    for path in Path:
        assert [datagram for datagram, on in heard if on is path] == [b"one", b"two"]


def test_a_path_may_be_of_ipv6() -> None:
    """There is one address of loopback only: who sends hears itself."""
    selector = BeatSelector()
    heard: list[tuple[bytes, Path]] = []

    async def run() -> None:
        done, take = _until_heard(2, heard)
        a = _heartbeats(selector, "::1", "::1", 17462, take)
        a.send(b"one")
        async with asyncio.timeout(5):
            await done
        a.close()

    _run(selector, run)
    assert sorted(heard, key=lambda one: one[1].value) == [(b"one", path) for path in Path]


class _Clock:
    """Of a selector whose time passes by hand. A beat is due 20 ns after the last, or as told."""

    def __init__(self, selector: BeatSelector, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns, self.beats, self.due_ns = 1000, 0, 0
        self.selector = selector
        self._ours, self._theirs = socket.socketpair()
        monkeypatch.setattr("colo_ebpf.control.loop.boot_ns", lambda: self.now_ns)
        selector.listen(self._ours.fileno(), self._read)
        selector.beat(lambda last_ns: self.due_ns or last_ns + 20, self._beat)

    def _beat(self, now_ns: int) -> bool:
        assert now_ns == self.now_ns
        self.beats += 1
        return False

    def _read(self) -> bool:
        self._ours.recv(10)
        return False

    def beats_at(self, now_ns: int, heard: bool) -> int:
        """How many there are then, if a datagram has come or not."""
        self.now_ns, before = 1000 + now_ns, self.beats
        if heard:
            self._theirs.send(b"x")
        self.selector.select(0)
        return self.beats - before

    def close(self) -> None:
        self.selector.close()
        self._ours.close()
        self._theirs.close()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[_Clock]:
    one = _Clock(BeatSelector(), monkeypatch)
    yield one
    one.close()


async def test_when_a_beat_is_due_may_change_at_any_time(clock: _Clock) -> None:
    assert clock.beats_at(0, heard=False) == 1
    assert clock.beats_at(6, heard=False) == 0
    clock.due_ns = 1007
    assert clock.beats_at(7, heard=False) == 1, "sooner"
    clock.due_ns = 1100
    assert clock.beats_at(60, heard=False) == 0, "later"
    clock.due_ns = 0
    assert clock.beats_at(60, heard=False) == 1
    clock.selector.rest()
    assert clock.beats_at(90, heard=False) == 0


async def test_a_beat_that_is_nearly_due_joins_a_heartbeat_and_none_is_late(clock: _Clock) -> None:
    assert clock.beats_at(0, heard=False) == 1
    assert clock.beats_at(14, heard=True) == 0
    assert clock.beats_at(15, heard=False) == 0
    assert clock.beats_at(15, heard=True) == 1
    assert clock.beats_at(34, heard=False) == 0
    assert clock.beats_at(35, heard=False) == 1


async def test_beats_that_were_missed_are_not_made_up_for(clock: _Clock) -> None:
    assert clock.beats_at(0, heard=False) == 1
    assert clock.beats_at(200, heard=False) == 1
    assert clock.beats_at(219, heard=False) == 0
    assert clock.beats_at(220, heard=False) == 1
