# SPDX-License-Identifier: GPL-2.0-only
"""Which worker gets which test file: a worker more than processors must not disturb real VMs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.workers import ByFile, is_beside

_FILES = ("bpf/test_a", "lab/test_b", "lab/test_c", "model/test_d", "qemu/test_e", "unit/test_f")
_TESTS = [f"tests/{file}.py::test_{n}" for file in _FILES for n in range(4)]


class _Node:
    """A worker that runs what it is given when it is told to."""

    def __init__(self, number: int) -> None:
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.given: list[int] = []
        self.ran: list[str] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self.given += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def _run(nodes: list[_Node], turns: list[int], tests: list[str]) -> list[list[str]]:
    """Directories that each worker ran, if they take a test each in these turns."""
    config: Any = SimpleNamespace(
        getvalue=lambda name: [f"{len(nodes)}*popen"] if name == "tx" else None,
        option=SimpleNamespace(loadscopereorder=False),
    )
    scheduler = ByFile(config, log=None)
    workers: list[Any] = list(nodes)
    for node in workers:
        scheduler.add_node(node)
        scheduler.add_node_collection(node, tests)
    scheduler.schedule()
    while any(node.given for node in nodes):
        for turn in turns:
            if nodes[turn].given:
                index = nodes[turn].given.pop(0)
                nodes[turn].ran.append(tests[index])
                scheduler.mark_test_complete(workers[turn], index)
    assert sorted(test for node in nodes for test in node.ran) == sorted(tests)
    assert all(node.shutting_down for node in nodes)
    return [[test.split("/")[1] for test in node.ran] for node in nodes]


def test_the_last_of_three_runs_nothing_with_vms() -> None:
    ran = _run([_Node(n) for n in range(3)], [2, 2, 2, 2, 0, 1], _TESTS)
    assert set(ran[2]) == {"bpf", "model", "unit"}
    assert set(ran[0] + ran[1]) == {"lab", "qemu"}


def test_what_it_has_no_time_for_is_run_by_the_others() -> None:
    ran = _run([_Node(n) for n in range(3)], [0, 1] * 30 + [2], _TESTS)
    assert "unit" in ran[0] + ran[1]
    assert "lab" not in ran[2]


@pytest.mark.parametrize("turns", [[0, 1], [1], [0, 0, 0, 1]])
def test_two_share_everything(turns: list[int]) -> None:
    ran = _run([_Node(0), _Node(1)], [*turns, 0, 1], _TESTS)
    assert set(ran[0] + ran[1]) == {"bpf", "lab", "model", "qemu", "unit"}


def test_without_anything_that_only_computes_it_ends() -> None:
    tests = [test for test in _TESTS if "/lab/" in test]
    assert _run([_Node(n) for n in range(3)], [0, 1, 2], tests)[2] == []


def test_only_of_three_and_more_one_is_beside() -> None:
    assert [is_beside(f"gw{n}", 2) for n in range(2)] == [False, False]
    assert [is_beside(f"gw{n}", 3) for n in range(3)] == [False, False, True]
