# SPDX-License-Identifier: GPL-2.0-only
"""One thing that is broken already ends the promise that the next one is survived."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from colo_ebpf.control.decision import record
from colo_ebpf.control.decision.decide import decide
from colo_ebpf.control.decision.snapshot import CheckpointFacts, Snapshot
from colo_ebpf.model import VmHealth
from tests.unit.test_decide import ACTIVE, NOW, PAIRED, SILENT, A, _at


def _peer(me: str, **change: Any) -> Snapshot:
    s = _at(me, PAIRED)
    assert s.peer.state is not None
    state = msgspec.structs.replace(s.peer.state, **change)
    return replace(s, peer=replace(s.peer, state=state))


def _ages(me: str, **change: Any) -> Snapshot:
    s = _at(me, PAIRED)
    return replace(s, peer=replace(s.peer, **change))


@pytest.mark.parametrize("me", ["a", "b"])
def test_a_pair_that_is_well_is_protected(me: str) -> None:
    assert decide(_at(me, PAIRED)).gap == ""
    assert decide(_ages(me, management_age_ns=SILENT)).gap == "", "one path is enough"


@pytest.mark.parametrize("me", ["a", "b"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"link_age_ns": SILENT}, "the link"),
        ({"bare_ns": SILENT}, "the link"),
        ({"unheard_ns": SILENT}, "the link"),
        ({"link_age_ns": SILENT, "management_age_ns": SILENT}, "not heard"),
        ({"away_since_ns": NOW}, "is away"),
    ],
)
def test_a_peer_that_is_not_heard_as_it_should_be(
    me: str, change: dict[str, Any], says: str
) -> None:
    s = _ages(me, **change)
    d = decide(s)
    assert says in d.gap or d.gap == d.sentence


@pytest.mark.parametrize("me", ["a", "b"])
@pytest.mark.parametrize(
    "change",
    [
        {"fit": False},
        {"fit": False, "want": "of the test"},
        {"health": VmHealth.GONE},
        {"state": "joining"},
        {"state": "claimed"},
    ],
)
def test_a_replica_that_could_not_go_on(me: str, change: dict[str, Any]) -> None:
    assert decide(_peer(me, **change)).gap


@pytest.mark.parametrize("me", ["a", "b"])
@pytest.mark.parametrize(
    "change",
    [
        {"paused": True},
        {"pending": record.claim(PAIRED, A)},
        {"read_error": "etcd does not answer"},
        {"arbiter_error": "etcd has raised the alarm NOSPACE"},
        {"record": None},
        {"record": ACTIVE},
        {"checkpoints": CheckpointFacts(broken="a write to the secondary's disk failed")},
    ],
)
def test_what_is_wrong_here(me: str, change: dict[str, Any]) -> None:
    assert decide(replace(_at(me, PAIRED), **change)).gap


@pytest.mark.parametrize("me", ["a", "b"])
@pytest.mark.parametrize("change", [{"fit": False}, {"alive": False}, {"colo_exit_ns": NOW}])
def test_a_vm_here_that_could_not_go_on(me: str, change: dict[str, Any]) -> None:
    s = _at(me, PAIRED)
    assert s.vm is not None
    assert decide(replace(s, vm=replace(s.vm, **change))).gap


@pytest.mark.parametrize("me", ["a", "b"])
def test_devices_that_a_takeover_would_need_count(me: str) -> None:
    lacks = "there is no bridge br0"
    assert lacks in decide(replace(_at(me, PAIRED), lacks=lacks)).gap
    assert lacks in decide(_peer(me, lacks=lacks)).gap


@pytest.mark.parametrize("me", ["a", "b"])
def test_an_arbiter_that_either_host_could_not_ask_counts(me: str) -> None:
    """As found: a pair at rest never asks it, and was protected for as long as nothing happened."""
    error = "etcd did not answer"
    assert error in decide(replace(_at(me, PAIRED), arbiter_error=error)).gap
    assert error in decide(_peer(me, arbiter=error)).gap
