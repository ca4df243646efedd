# SPDX-License-Identifier: GPL-2.0-only
"""Whether the SVM still works on an answer, by what its vCPUs do."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from colo_ebpf.control.checkpoint.watch import EVERY_NS, Watch, Work
from colo_ebpf.control.qemu import vcpus

MS = 1_000_000
WORTH = 60 * MS
QUESTION = 77


def _watch(work: Work | None = None) -> Watch:
    watch = Watch()
    watch.begin(QUESTION, WORTH, work or Work((0, 0)), 0)
    return watch


def _looked(watch: Watch, *works: Work) -> list[bool]:
    """One look after the other; whether waiting was in vain by then."""
    found = []
    for work in works:
        assert watch.due_ns is not None
        watch.look(work, watch.due_ns)
        found.append(watch.spent == QUESTION)
    return found


def test_an_idle_svm_is_found_with_the_first_look() -> None:
    watch = _watch()
    assert _looked(watch, Work((0, 0))) == [True]
    assert watch.idle
    assert watch.due_ns is None, "there is nothing more to find out"


def test_timer_ticks_are_no_work() -> None:
    assert _looked(_watch(), Work((EVERY_NS // 20, EVERY_NS // 20))) == [True]


def test_an_svm_that_works_and_then_rests() -> None:
    busy = (Work((5 * MS, 0)), Work((5 * MS, 9 * MS)))
    assert _looked(_watch(), *busy, Work((5 * MS, 9 * MS))) == [False, False, True]


def test_one_vcpu_that_works_is_enough() -> None:
    works = [Work((0, n * 10 * MS)) for n in range(1, 6)]
    assert _looked(_watch(), *works) == [False] * 5


def test_what_it_is_worth_is_processor_time() -> None:
    works, watch = [Work((n * 10 * MS, 0)) for n in range(1, 7)], _watch()
    assert _looked(watch, *works) == [False] * 5 + [True]
    assert not watch.idle


def test_who_waits_for_a_processor_is_not_idle_and_spends_nothing() -> None:
    waits = [Work((MS, 0), ready=True)] * 100
    assert not any(_looked(_watch(), *waits))


def test_another_question_begins_anew() -> None:
    watch = _watch()
    assert _looked(watch, Work((0, 0))) == [True]
    assert not watch.news(QUESTION) and not watch.news(0) and watch.news(78)
    watch.begin(78, WORTH, Work((0, 0)), 500 * MS)
    assert (watch.question, watch.spent, watch.due_ns) == (78, QUESTION, 500 * MS + EVERY_NS)


def test_what_nobody_knows_counts_as_work() -> None:
    works = [vcpus.UNKNOWN] * 50
    assert not any(_looked(_watch(vcpus.UNKNOWN), *works))


# -- from /proc ------------------------------------------------------------------------------------


def test_a_thread_that_spins_has_worked_and_one_that_sleeps_has_not() -> None:
    ends, tids, started = threading.Event(), [], threading.Barrier(3)

    def spin() -> None:
        tids.append(threading.get_native_id())
        started.wait()
        while not ends.is_set():
            pass

    def sleep() -> None:
        tids.append(threading.get_native_id())
        started.wait()
        ends.wait()

    threads = [threading.Thread(target=spin), threading.Thread(target=sleep)]
    threads[0].start()
    while not tids:
        pass
    threads[1].start()
    started.wait()
    try:
        before = vcpus.look(os.getpid(), tids)
        while (after := vcpus.look(os.getpid(), tids)).since_ns(before) < 5 * MS:
            pass
        spun, slept = (now - then for now, then in zip(after.ran_ns, before.ran_ns, strict=True))
        assert (after.ready, spun >= 5 * MS) == (True, True)
        assert slept < spun
    finally:
        ends.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("name", ["cat", "a) R (b", "CPU 0/TCG"])
def test_the_state_is_behind_the_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"schedstat": "12345 6 7\n", "stat": f"1 ({name}) S 1 1 0\n"}
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([self / "1"]))
    monkeypatch.setattr(Path, "read_text", lambda self: said[self.name])
    assert vcpus.look(1, (1,)) == Work((12345,), ready=False)


@pytest.mark.parametrize("state", ["R", "D"])
def test_running_and_waiting_for_a_disk_are_told(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"schedstat": "1 2 3\n", "stat": f"1 (x) {state} 1 1 0\n"}
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([self / "1"]))
    monkeypatch.setattr(Path, "read_text", lambda self: said[self.name])
    assert vcpus.look(1, (1,)).ready


@pytest.mark.parametrize("schedstat", ["", "x y z", " "])
def test_what_cannot_be_read_is_not_known(schedstat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([]))
    monkeypatch.setattr(Path, "read_text", lambda self: schedstat)
    assert vcpus.look(1, (1,)) == vcpus.UNKNOWN


def test_a_process_that_is_gone_is_not_known() -> None:
    assert vcpus.look(2**22 + 1, (1,)) == vcpus.UNKNOWN


def test_a_main_loop_that_waits_for_a_processor_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The input has not come to the guest yet: the vCPUs sleep, and will not for long."""
    states = {"1": "R", "2": "S"}
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([self / "1", self / "2"]))

    def read(path: Path) -> str:
        state = states[path.parent.name]
        return "5 0 1\n" if path.name == "schedstat" else f"1 (x) {state} 1 1 0\n"

    monkeypatch.setattr(Path, "read_text", read)
    assert vcpus.look(1, (2,)).ready
