# SPDX-License-Identifier: GPL-2.0-only
"""What is broken, on which side, at which moment, and who must serve then.

A row is one line of docs/failure-scenarios.md. Faults speak of roles: which host has which changes
from row to row.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable
from dataclasses import dataclass

from colo_ebpf.lab import faults, processes, topology
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import arbiter_namespace
from tests.matrix import hosts

_HOUR_S = 3600


class Moment(enum.Enum):
    """When it breaks."""

    IDLE = "idle"  # a ledger entry now and then
    LOAD = "under load"  # a download, new connections, mismatches
    CHECKPOINT = "inside a checkpoint"  # asked for, not answered
    RESYNC = "during resync"
    FAILOVER = "during failover"


class Then(enum.Enum):
    """Who serves until the fault is over."""

    SAME = "the same VM"
    OTHER = "the other VM"
    EITHER = "one of the two"
    NOBODY = "nobody: withheld until it is over"
    COLD = "its image, started again: connections are lost"


@dataclass(frozen=True, slots=True)
class Place:
    """A lab whose roles are known."""

    lab: Lab
    primary: str
    secondary: str


Fault = Callable[[Place], object]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `often`: also in `make test`. `mend` ends what `Lab.heal` does not."""

    fault: str
    moment: Moment
    then: Then
    inject: Fault
    often: bool = False
    mend: Fault = lambda place: None

    @property
    def name(self) -> str:
        """Of the test."""
        return f"{self.fault}, {self.moment.value}"


def _kill(role: str, what: str) -> Fault:
    return lambda p: faults.kill(p.lab, getattr(p, role), what)


def _hang(role: str, what: str) -> Fault:
    return lambda p: faults.hang(p.lab, getattr(p, role), what)


def _cut(*paths: str) -> Fault:
    def inject(p: Place) -> None:
        for path in paths:
            faults.cut(p.lab, path)

    return inject


def stop_etcd(p: Place) -> None:
    """It neither answers nor refuses."""
    processes.send(processes.in_namespace(arbiter_namespace(p.lab.name)), signal.SIGSTOP)


def _here(role: str, do: Callable[[topology.Place], object]) -> Fault:
    return lambda p: do(p.lab.places[getattr(p, role)])


def _both(*inject: Fault) -> Fault:
    def run(p: Place) -> None:
        for one in inject:
            one(p)

    return run


def _power_cut(p: Place) -> None:
    """Both at one moment: neither sees the other die. The secondary first, so that it cannot."""
    for do in (faults.hang, faults.kill):
        for host in (p.secondary, p.primary):
            do(p.lab, host, "host")


_SIDES = [
    ("primary", "vm", "kill", Then.OTHER),
    ("primary", "host", "kill", Then.OTHER),
    ("primary", "host", "hang", Then.OTHER),
    ("primary", "vm", "hang", Then.OTHER),
    ("primary", "daemon", "kill", Then.SAME),
    ("primary", "daemon", "hang", Then.OTHER),
    ("secondary", "vm", "kill", Then.SAME),
    ("secondary", "host", "kill", Then.SAME),
    ("secondary", "host", "hang", Then.SAME),
    ("secondary", "vm", "hang", Then.SAME),
    ("secondary", "daemon", "kill", Then.SAME),
    ("secondary", "daemon", "hang", Then.SAME),
]
_OFTEN = {
    ("primary", "host", "kill", Moment.IDLE),
    ("primary", "vm", "kill", Moment.LOAD),
    ("primary", "host", "hang", Moment.LOAD),
    ("primary", "vm", "hang", Moment.LOAD),
    ("primary", "daemon", "kill", Moment.LOAD),
    ("secondary", "host", "kill", Moment.LOAD),
    ("secondary", "daemon", "hang", Moment.IDLE),
}
_DO = {"kill": _kill, "hang": _hang}
_WORD = {"kill": "killed", "hang": "stopped"}


def _side_rows() -> list[Row]:
    return [
        Row(
            f"{role}'s {what} {_WORD[how]}".replace("vm", "QEMU"),
            moment,
            then,
            _DO[how](role, what),
            (role, what, how, moment) in _OFTEN,
        )
        for moment in (Moment.IDLE, Moment.LOAD)
        for role, what, how, then in _SIDES
    ]


_CUTS = [
    (("link",), Then.SAME, True),
    (("management",), Then.SAME, False),
    (("arbiter",), Then.SAME, False),
    (("link", "management"), Then.EITHER, True),
    (("link", "arbiter"), Then.NOBODY, True),
    (("management", "arbiter"), Then.SAME, False),
    (("link", "management", "arbiter"), Then.NOBODY, False),
]


def _cut_rows() -> list[Row]:
    return [
        Row(f"{' and '.join(paths)} cut", Moment.LOAD, then, _cut(*paths), often)
        for paths, then, often in _CUTS
    ]


def _ahead(place: topology.Place) -> None:
    hosts.step_clock(place, _HOUR_S)


def _back(place: topology.Place) -> None:
    hosts.step_clock(place, -_HOUR_S)


def _disk_rows() -> list[Row]:
    return [
        Row(f"{role}'s disk {word}", Moment.LOAD, then, _here(role, do), True, _here(role, undo))
        for word, do, undo in (
            ("full", hosts.fill, hosts.empty),
            ("fails", hosts.fail, hosts.repair),
        )
        for role, then in (("primary", Then.OTHER), ("secondary", Then.SAME))
    ]


L, C, R, F = Moment.LOAD, Moment.CHECKPOINT, Moment.RESYNC, Moment.FAILOVER
_LATER = [
    Row("secondary's host killed", C, Then.SAME, _kill("secondary", "host"), True),
    Row("secondary's QEMU killed", C, Then.SAME, _kill("secondary", "vm")),
    Row("primary's host killed", C, Then.OTHER, _kill("primary", "host"), True),
    Row("primary's QEMU killed", C, Then.OTHER, _kill("primary", "vm")),
    Row("primary's daemon killed", C, Then.NOBODY, _kill("primary", "daemon")),
    Row("secondary's daemon killed", C, Then.SAME, _kill("secondary", "daemon")),
    Row("link cut", C, Then.SAME, _cut("link")),
    Row("secondary's QEMU killed", R, Then.SAME, _kill("secondary", "vm")),
    Row("secondary's host killed", R, Then.SAME, _kill("secondary", "host"), True),
    Row("primary's daemon killed", R, Then.SAME, _kill("primary", "daemon")),
    Row("link cut", R, Then.SAME, _cut("link")),
    Row("secondary's QEMU stopped", R, Then.SAME, _hang("secondary", "vm")),
    Row("secondary's host stopped", R, Then.SAME, _hang("secondary", "host")),
    Row("survivor's host killed", R, Then.COLD, _kill("primary", "host"), True),
    Row("survivor's QEMU killed", R, Then.COLD, _kill("primary", "vm")),
    Row("both hosts killed", Moment.IDLE, Then.COLD, _power_cut, True),
    Row(
        "both QEMUs killed",
        Moment.IDLE,
        Then.COLD,
        _both(_kill("secondary", "vm"), _kill("primary", "vm")),
    ),
    Row("survivor's daemon killed", F, Then.NOBODY, _kill("secondary", "daemon")),
    Row(
        "primary's QEMU killed while etcd is stopped",
        Moment.LOAD,
        Then.NOBODY,
        _both(stop_etcd, _kill("primary", "vm")),
        True,
    ),
    Row("etcd stopped", Moment.LOAD, Then.SAME, stop_etcd),
    *_disk_rows(),
    Row("primary's wall clock an hour ahead", L, Then.SAME, _here("primary", _ahead), True),
    Row("secondary's wall clock an hour ahead", L, Then.SAME, _here("secondary", _ahead)),
    Row("primary's wall clock an hour back", L, Then.SAME, _here("primary", _back)),
    Row("secondary's wall clock an hour back", L, Then.SAME, _here("secondary", _back), True),
]

ROWS = [*_side_rows(), *_cut_rows(), *_LATER]
