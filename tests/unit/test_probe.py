# SPDX-License-Identifier: GPL-2.0-only
"""While checkpoints come as soon as output waits: is one of them put off, and what does it tell?"""

from __future__ import annotations

from colo_ebpf.control.checkpoint.probe import Probe

MS = 1_000_000
WORTH = 30 * MS


def _until_it_begins(probe: Probe, now_ns: int = 0) -> int:
    """How many checkpoints come before one is put off."""
    count = 0
    while not probe.puts_off(now_ns, WORTH, now_ns):
        probe.loaded()
        count += 1
        assert count < 1000
    return count


def test_one_that_was_not_needed_is_followed_by_another() -> None:
    probe = Probe()
    _until_it_begins(probe)
    for _ in range(3):
        assert not probe.enough
        assert probe.puts_off(0, WORTH, MS)
        probe.cleared()
    assert probe.enough


def test_under_a_load_that_never_ends_it_is_enough_that_what_was_held_has_left() -> None:
    probe = Probe()
    _until_it_begins(probe)
    for n in range(1, 4):
        now_ns = 10 * n * MS
        assert not probe.enough
        assert probe.puts_off(now_ns, WORTH, now_ns + 1), "what is held came later"
        probe.puts_off(now_ns, WORTH, now_ns + 2)  # the next begins
    assert probe.enough


def test_what_the_svm_does_not_say_in_time_costs_the_checkpoint() -> None:
    probe = Probe()
    _until_it_begins(probe)
    assert probe.puts_off(0, WORTH, WORTH - 1)
    assert not probe.puts_off(0, WORTH, WORTH)
    assert not probe.puts_off(0, WORTH, WORTH + 1)


def test_it_is_put_off_for_a_moment_only() -> None:
    probe = Probe()
    while not probe.puts_off(0, 5_000 * MS, 0):
        probe.loaded()
    assert not probe.puts_off(0, 5_000 * MS, 150 * MS)


def test_what_differs_costs_it_at_once() -> None:
    probe = Probe()
    assert not probe.differs(), "none is put off"
    _until_it_begins(probe)
    assert probe.differs()
    assert not probe.puts_off(0, WORTH, 1)


def test_after_one_in_vain_twice_as_many_come_but_it_is_never_given_up() -> None:
    probe, counts = Probe(), []
    for _ in range(7):
        counts.append(_until_it_begins(probe))
        probe.in_vain()
    assert counts == [4, 8, 16, 32, 64, 64, 64]


def test_they_have_to_come_in_a_row() -> None:
    probe = Probe()
    for _ in range(5):
        _until_it_begins(probe)
        probe.cleared()
        assert probe.puts_off(0, WORTH, MS)
        probe.in_vain()
    assert not probe.enough


def test_a_checkpoint_of_another_cause_says_nothing() -> None:
    probe = Probe()
    _until_it_begins(probe)
    probe.loaded()
    probe.cleared()
    assert not probe.enough
    assert probe.puts_off(0, WORTH, MS), "the next is put off"


def test_that_a_connection_is_accepted_tells_nothing() -> None:
    """Clients that connect, one for each answer, would look as if the VMs agreed."""
    probe = Probe()
    for now_ms in range(100):
        assert not probe.puts_off(None, WORTH, now_ms * MS)
        probe.loaded()
    assert not probe.enough
    assert probe.puts_off(0, WORTH, 0)
