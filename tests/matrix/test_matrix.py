# SPDX-License-Identifier: GPL-2.0-only
"""The rows of docs/reference/failure-scenarios.md, on one pair that heals in between.

One ledger connection lives through all of them but those where the only good copy of its state is
lost: then the image is, with every entry in it. After each row: who served is who should, never
two at a time; every entry was answered rightly; the pair is protected again. After the last the
guest still knows everything that clients were ever told. `make matrix` runs all rows,
`make test` those that are marked.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest

from colo_ebpf.control.admin import control_socket
from colo_ebpf.lab import faults, processes
from colo_ebpf.lab.topology import HOSTS, arbiter_namespace
from tests.capabilities import ROOT, require
from tests.matrix import hosts
from tests.matrix.clients import Load
from tests.matrix.pair import Pair, working
from tests.matrix.rows import ROWS, Moment, Place, Row, Then, stop_etcd

_CHOSEN = [row for row in ROWS if row.often or "COLO_MATRIX" in os.environ]
_SILENCE_S = 1.0
_TABLE = ROOT / "docs" / "reference" / "failure-scenarios.md"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Protected, with a client; ended by the checks of the whole."""
    require("nft")
    with working("colotestm", "etcd", hosts.prepare) as made:
        yield made


def _pairing(pair: Pair, place: Place) -> bool:
    """A replica is being made, and its QEMU is there."""
    there = processes.pids_of(place.lab.places[place.secondary].namespace, "vm")
    return bool(there) and pair.status(place.primary).get("state") == "pairing"


def _prepare(pair: Pair, place: Place, moment: Moment) -> None:
    lab = place.lab
    if moment is Moment.CHECKPOINT:  # the SVM cannot answer: the request stays open
        faults.hang(lab, place.secondary, "vm")
        control_socket.ask(lab.places[place.primary].run_dir / "ctl.sock", "checkpoint")
        pair.until(
            lambda: pair.status(place.primary)["checkpoints"]["stage"] == "triggered",
            "no checkpoint was triggered",
        )
    elif moment is Moment.RESYNC:
        faults.kill(lab, place.secondary, "vm")
        pair.until(lambda: _pairing(pair, place), "no new pairing begins")
    elif moment is Moment.FAILOVER:  # won by nobody yet: the arbiter is asked and does not answer
        stop_etcd(place)
        faults.kill(lab, place.primary, "vm")
        pair.until(
            lambda: "bidding" in pair.status(place.secondary).get("sentence", ""), "nobody bids"
        )


def _inject(row: Row, place: Place) -> None:
    row.inject(place)
    if row.moment is Moment.CHECKPOINT:
        pids = processes.pids_of(place.lab.places[place.secondary].namespace, "vm")
        processes.send(pids, signal.SIGCONT)
    if row.moment is Moment.FAILOVER:
        processes.resume(arbiter_namespace(place.lab.name))


def _then(pair: Pair, row: Row, place: Place, since: float) -> None:
    if row.then in (Then.NOBODY, Then.COLD):
        pair.until(lambda: pair.clients.silent_s() > _SILENCE_S, "somebody speaks")
        return
    if row.then is Then.OTHER:
        pair.until_taken_over(place.secondary, since)
    pair.until_growth()


def _said(pair: Pair, row: Row, place: Place) -> None:
    if row.says:
        history = pair.status(place.primary)["history"]
        assert any(row.says in one["sentence"] for one in history), history
    if row.attempt:
        why = row.attempt.format(place.secondary)
        for host in HOSTS:
            pair.until(
                lambda host=host: why in pair.status(host)["last_attempt"]["given_up"],
                f"the status of {host} does not say: {why}",
            )


def _served(row: Row, place: Place, turns: list[tuple[str, int, int]]) -> str:
    """Complaint about who has spoken, in order: each of the two at most once."""
    order = [host for host, _, _ in turns]
    allowed = {
        Then.SAME: [[place.primary], []],
        Then.OTHER: [[place.secondary], [place.primary, place.secondary]],
        Then.COLD: [[place.primary]],
    }
    either = [[], [place.primary], [place.secondary], [place.primary, place.secondary]]
    good = order in allowed.get(row.then, either)
    return "" if good else f"{row.then.value} was to serve; who spoke, from ms to ms: {turns}"


@pytest.mark.parametrize("row", _CHOSEN, ids=lambda row: row.name)
def test_row(row: Row, pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    pair.lab.wait_protected()
    place = pair.place()
    load: Load | None = pair.clients.load() if row.moment is Moment.LOAD else None
    pair.until_growth()
    _prepare(pair, place, row.moment)
    since = time.monotonic()
    _inject(row, place)
    _then(pair, row, place, since)
    _said(pair, row, place)
    if row.then is Then.COLD:
        pair.clients.lose()
    row.mend(place)
    pair.lab.heal()
    pair.lab.wait_protected()
    healed = time.monotonic()
    if row.then is Then.COLD:
        pair.clients.again()
    pair.until_growth()
    wrong = pair.clients.finish(load) if load else []
    outage_ms = pair.clients.ledger.gaps.longest_ms(since, time.monotonic())
    with capsys.disabled():
        took = f"protected after {healed - since:.1f} s, row {healed - begun:.1f} s"
        print(f"\n  {row.name}: ledger silent {outage_ms:.0f} ms, {took}", end=" ", flush=True)
    assert wrong + pair.clients.ledger.wrong == []
    assert _served(row, place, pair.clients.turns(since)) == ""


def test_the_images_are_equal(pair: Pair) -> None:
    """Behind all of it."""
    pair.verify()


def test_every_row_is_in_the_table() -> None:
    """And the table has no other."""
    lines = [line for line in _TABLE.read_text().splitlines() if line.startswith("| ")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    table = {(c[0], c[1], c[2]) for c in cells if c[1] in {m.value for m in Moment}}
    assert table == {(row.fault, row.moment.value, row.then.value) for row in ROWS}
    assert len(ROWS) >= 40
