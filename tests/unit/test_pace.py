# SPDX-License-Identifier: GPL-2.0-only
"""When to compare is in vain, and when it is not any more: whatever lets answers wait less."""

from __future__ import annotations

import pytest

from colo_ebpf.control.checkpoint.pace import Bound, Cycle, Gather, Pace, Wanted, Way

MS = 1_000_000
PAUSE = 15 * MS


class Load:
    """Clients, by what an answer waits for in either way. Runs a `Pace` in virtual time."""

    def __init__(
        self, pace: Pace, *, differs: int = 1, svm_ms: int = 100, clients: int = 1
    ) -> None:
        """Every so many answers one differs (0: none); the SVM takes `svm_ms` for the first one
        after a load, and 3 ms for the others."""
        self.pace, self.now_ns = pace, 10_000 * MS
        self.differs, self.svm_ms, self.clients = differs, svm_ms, clients
        self.told: list[str] = []
        self.ways: list[tuple[int, Way]] = []
        pace.begin(self.now_ns)

    def run(self, seconds: float) -> Load:
        """So long."""
        end_ns = self.now_ns + int(seconds * 1000) * MS
        while self.now_ns < end_ns:
            self._cycle(end_ns)
        return self

    def _cycle(self, end_ns: int) -> None:
        began_ns = self.now_ns
        if self.pace.way is Way.PERIODIC:
            compared = compared_wait_ns = 0
            ran_ns = wait_ns = (4 + self.clients // 4) * MS
        else:
            compared = (self.differs - 1) * self.clients
            compared_wait_ns = compared * 3 * MS
            ran_ns = wait_ns = (self.svm_ms + 3 * max(0, self.differs - 1)) * MS
        if not self.differs:
            self._idle(end_ns)
            return
        self.now_ns += ran_ns + PAUSE
        self._note(
            self.pace.loaded(
                Cycle(
                    began_ns=began_ns,
                    ended_ns=self.now_ns,
                    pause_ns=PAUSE,
                    differs=self.pace.way is Way.COMPARE,
                    compared=compared,
                    compared_wait_ns=compared_wait_ns,
                    flushed=self.clients,
                    flushed_wait_ns=self.clients * (wait_ns + PAUSE),
                )
            )
        )

    def _idle(self, end_ns: int) -> None:
        due_ns = self.pace.due_ns
        self.now_ns = end_ns if due_ns is None else min(end_ns, max(due_ns, self.now_ns + MS))
        self._note(self.pace.look(self.now_ns))

    def _note(self, sentence: str) -> None:
        self._note_way()
        if sentence:
            self.told.append(sentence)

    def _note_way(self) -> None:
        if not self.ways or self.ways[-1][1] is not self.pace.way:
            self.ways.append((self.now_ns, self.pace.way))

    def share(self, way: Way) -> float:
        """Of the time since the first change."""
        spans = zip(self.ways, [*self.ways[1:], (self.now_ns, way)], strict=True)
        found = sum(end - begin for (begin, one), (end, _) in spans if one is way)
        return found / (self.now_ns - self.ways[0][0])


@pytest.mark.parametrize("clients", [1, 50])
def test_dice_do_not_wait_for_the_svm(clients: int) -> None:
    load = Load(Pace(), clients=clients).run(60)
    assert load.pace.way is Way.PERIODIC
    assert load.share(Way.PERIODIC) > 0.9
    assert load.told[0].startswith("checkpoints come as soon as output waits: it differs often")
    assert len(load.told) == 1, "it is said once"


def test_an_svm_that_is_as_fast_is_compared_with() -> None:
    """Where answers wait no less, nothing is won by not comparing."""
    load = Load(Pace(), svm_ms=1).run(60)
    assert load.share(Way.COMPARE) > 0.9
    assert load.told == []


def test_a_date_that_differs_once_a_second_is_compared() -> None:
    load = Load(Pace(), differs=200).run(60)
    assert [way for _, way in load.ways] == [Way.COMPARE]


def test_where_most_answers_are_equal_comparing_stays() -> None:
    load = Load(Pace(), differs=20).run(60)
    assert load.share(Way.COMPARE) > 0.9


def test_once_nothing_differs_any_more_it_compares_again() -> None:
    load = Load(Pace()).run(20)
    assert load.pace.way is Way.PERIODIC
    load.differs = 0
    load.run(130)
    assert load.pace.way is Way.COMPARE
    assert load.told[-1] == "output is compared again: nothing differed for a while"
    assert load.pace.why == load.told[-1]


def test_a_load_that_changes_is_followed() -> None:
    load = Load(Pace())
    for _ in range(3):
        load.differs = 1
        assert load.run(130).pace.way is Way.PERIODIC
        load.differs = 200
        assert load.run(130).pace.way is Way.COMPARE


def test_a_load_that_clearly_gains_is_not_kept_waiting_by_the_one_before() -> None:
    """Of which the other way was in vain a moment ago."""
    load = Load(Pace(), svm_ms=16, clients=50).run(20)
    assert load.pace.way is Way.COMPARE
    load.svm_ms = 100
    load.run(2)
    assert load.pace.way is Way.PERIODIC


def test_a_try_is_not_judged_by_another_load() -> None:
    """As found: one client was followed by fifty, and comparing had more answers a second."""
    load = Load(Pace()).run(20)
    for clients in (50, 1) * 20:
        assert load.pace.way is Way.PERIODIC
        for _ in range(60):
            load.now_ns += 10 * MS
            load._note(load.pace.look(load.now_ns))
        load.clients = clients
        load.run(2.1)
    assert len(load.told) == 1


def test_it_does_not_flap() -> None:
    load = Load(Pace()).run(600)
    assert load.share(Way.PERIODIC) > 0.95, "tries in vain are short, and seldom"
    assert len(load.told) == 1


@pytest.mark.parametrize(
    ("wanted", "way", "why"),
    [
        (Wanted.COMPARE, Way.COMPARE, "output is compared, as configured"),
        (Wanted.PERIODIC, Way.PERIODIC, "checkpoints come as soon as output waits, as configured"),
    ],
)
def test_an_operator_can_fix_the_way(wanted: Wanted, way: Way, why: str) -> None:
    load = Load(Pace(wanted)).run(60)
    assert ([way for _, way in load.ways], load.told, load.pace.why) == ([way], [], why)
    assert load.pace.due_ns is None
    assert not any(load.pace.puts_off(0, MS, now_ns) for now_ns in range(100))


def test_once_some_answers_were_the_same_comparing_is_tried() -> None:
    load = Load(Pace()).run(20)
    pace = load.pace
    assert (pace.way, pace.probe.enough) == (Way.PERIODIC, False)
    while not pace.probe.enough:
        if pace.puts_off(load.now_ns, MS, load.now_ns):
            pace.probe.cleared()
        else:
            pace.probe.loaded()
    load.differs = 0
    assert load.run(0.01).pace.way is Way.COMPARE
    load.run(1.1)
    assert load.told[-1] == "output is compared again: nothing differed for a while"


def test_in_a_try_no_checkpoint_is_put_off() -> None:
    """It is about what they cost."""
    load = Load(Pace())
    for _ in range(1_000):
        load._cycle(load.now_ns + 1)
        if load.pace.way is Way.PERIODIC:
            break
    for _ in range(7):
        assert not load.pace.puts_off(load.now_ns, MS, load.now_ns)
        load._cycle(load.now_ns + 1)
    assert load.told == []


def test_checkpoints_of_other_causes_say_nothing() -> None:
    pace = Pace()
    pace.begin(0)
    for n in range(1, 50):
        cycle = Cycle(n * 100, n * 100 + 90, 10, False, 0, 0, 1, 90 * MS)
        assert pace.loaded(cycle) == ""
    assert pace.way is Way.COMPARE


# -- as soon as output waits -----------------------------------------------------------------------


@pytest.mark.parametrize(("pause_ms", "gap_ms"), [(2, 1), (12, 2), (300, 5)])
def test_a_single_answer_waits_for_others_for_a_part_of_a_pause(pause_ms: int, gap_ms: int) -> None:
    gather, now_ns = Gather(), 0
    gather.first(7, now_ns)
    while now_ns < gap_ms * MS:
        assert gather.due_ns is not None and gather.due_ns > now_ns
        now_ns = gather.due_ns
        assert gather.look(7, pause_ms * MS, now_ns) is (now_ns >= gap_ms * MS)


@pytest.mark.parametrize(("pause_ms", "most_ms"), [(2, 20), (15, 30)])
def test_while_more_comes_it_waits_but_not_for_ever(pause_ms: int, most_ms: int) -> None:
    gather, now_ns, heads = Gather(), 0, 7
    gather.first(heads, now_ns)
    while now_ns < most_ms * MS:
        assert gather.due_ns is not None
        now_ns, heads = gather.due_ns, heads + 1
        assert gather.look(heads, pause_ms * MS, now_ns) is (now_ns >= most_ms * MS)


def test_nothing_held_is_nothing_due() -> None:
    gather = Gather()
    gather.first(7, 0)
    gather.none()
    assert gather.due_ns is None


# -- bounded pauses --------------------------------------------------------------------------------

LONGEST = 60_000 * MS


def _dirtied(bound: Bound, seconds: int, mib_s: int) -> list[int]:
    """Epochs as long as they may be, of a guest that writes so much; their pauses (1 MiB: 2 ms)."""
    pauses, now_ns = [], 0
    while now_ns < seconds * 1000 * MS:
        ran_ns = bound.epoch_ns
        pause_ns = 10 * MS + ran_ns * mib_s * 2 * MS // (1000 * MS)
        end_ns = now_ns + ran_ns + pause_ns
        bound.loaded(Cycle(now_ns, end_ns, pause_ns, False, 0, 0, 0, 0))
        pauses.append(pause_ns)
        now_ns = end_ns
    return pauses


def test_epochs_are_made_shorter_until_their_pause_fits() -> None:
    pauses = _dirtied(Bound(50 * MS, LONGEST), 300, 20)
    assert pauses[0] > 1000 * MS
    assert max(pauses[-20:]) <= 75 * MS
    assert min(pauses[-20:]) >= 20 * MS, "and not shorter than that takes"


def test_once_little_is_written_they_are_long_again() -> None:
    bound = Bound(50 * MS, LONGEST)
    _dirtied(bound, 100, 20)
    assert bound.epoch_ns < 3_000 * MS
    _dirtied(bound, 600, 0)
    assert bound.epoch_ns == LONGEST


def test_an_epoch_is_never_so_short_that_the_vm_hardly_runs() -> None:
    bound = Bound(50 * MS, LONGEST)
    _dirtied(bound, 100, 10_000)
    assert bound.epoch_ns == 100 * MS


def test_without_a_bound_nothing_changes() -> None:
    bound = Bound(0, LONGEST)
    _dirtied(bound, 1000, 1000)
    assert bound.epoch_ns == LONGEST
