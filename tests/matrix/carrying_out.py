# SPDX-License-Identifier: GPL-2.0-only
"""A row of the matrix, from a protected pair to a protected pair."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from colo_ebpf.control.admin import control_socket
from colo_ebpf.lab import faults, processes
from colo_ebpf.lab.topology import HOSTS, arbiter_namespace
from tests.matrix.clients import Load
from tests.matrix.pair import Pair
from tests.matrix.rows import Moment, Place, Row, Then, stop_etcd

_SILENCE_S = 1.0
_UNDER_WAY = ("stopping", "triggered")  # with one disk its epoch has to begin first, there and here


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
            lambda: pair.status(place.primary)["checkpoints"]["stage"] in _UNDER_WAY,
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


def carry_out(row: Row, pair: Pair, say: Callable[[str], None]) -> None:
    """AssertionError if anybody but who should has served, or an entry was answered wrongly."""
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
    pair.heal()
    healed = time.monotonic()
    if row.then is Then.COLD:
        pair.clients.again()
    pair.until_growth()
    wrong = pair.clients.finish(load) if load else []
    outage_ms = pair.clients.ledger.gaps.longest_ms(since, time.monotonic())
    took = f"protected after {healed - since:.1f} s, row {healed - begun:.1f} s"
    say(f"{row.name}: ledger silent {outage_ms:.0f} ms, {took}")
    assert wrong + pair.clients.ledger.wrong == []
    assert _served(row, place, pair.clients.turns(since)) == ""
