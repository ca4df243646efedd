# SPDX-License-Identifier: GPL-2.0-only
"""A lab has the programs that a lab before it had loaded: to verify them takes most of a start."""

from __future__ import annotations

import pytest

from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import Place
from tests.capabilities import require
from tests.lab import clean

NAME = "colotplanes"


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("root", "bpf", "qemu", "guest")


def _start(lab: Lab) -> Place:
    """One host's daemon, until it answers."""
    place = lab.places["a"]
    lab.start_daemon(place)
    lab.wait(lambda: lab.ask("a") is not None, "host a does not answer")
    return place


def test_a_lab_is_lent_the_programs_of_the_one_before() -> None:
    """As found: the kernel puts files of its own into a BPF file system, which was not empty then,
    and no lab was lent anything."""
    lab = clean(Lab(NAME))
    try:
        for _ in range(2):
            lab.build(choose(Wanted()))
            said = _start(lab).log.read_text()
            lab.down()
        assert "adopted 19 programs" in said
    finally:
        lab.down()
