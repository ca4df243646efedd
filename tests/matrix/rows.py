# SPDX-License-Identifier: GPL-2.0-only
"""What is broken, on which side, at which moment, and who must serve then.

A row is one line of docs/reference/failure-scenarios.md.
Faults speak of roles: which host has which changes
from row to row.
"""

from __future__ import annotations

import enum
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from colo_ebpf.datapath.bpf.loader import pin_directory
from colo_ebpf.datapath.net import tcx
from colo_ebpf.lab import faults, processes, topology
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import arbiter_namespace
from tests.etcd import of_lab
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


L, C, R, F = Moment.LOAD, Moment.CHECKPOINT, Moment.RESYNC, Moment.FAILOVER


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
    says: str = ""  # in the history of the host that serves
    attempt: str = ""  # in the status of both hosts: why no new pair could be made meanwhile

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


def _etcd_has_room(left: bool) -> Fault:
    return lambda p: of_lab.set_room(p.lab, left=left)


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


_PORTS = [
    ("frames", "udp", "vxlan_port"),
    ("heartbeats", "udp", "heartbeat_port"),
    ("writes of the disk", "tcp", "nbd_port"),
    ("checkpoints", "tcp", "migration_port"),
]
_OFTEN_PORTS = {
    ("frames", "primary"),
    ("frames", "secondary"),
    ("writes of the disk", "secondary"),
    ("checkpoints", "primary"),
}
_NO_ANSWER = "the link carries heartbeats, but {} does not answer on TCP port"
NO_FRAMES = "the link carries heartbeats but no frames (firewall?)"


def _port_rows() -> list[Row]:
    return [
        Row(
            f"{what} to the {role} blocked",
            Moment.LOAD,
            Then.SAME,
            _here(role, partial(hosts.block, protocol=protocol, port=port)),
            (what, role) in _OFTEN_PORTS,
            _here(role, hosts.unblock),
            NO_FRAMES if what == "frames" else "",
            _NO_ANSWER if protocol == "tcp" else "",
        )
        for what, protocol, port in _PORTS
        for role in ("primary", "secondary")
    ]


def _blocked_in_resync() -> list[Row]:
    """Before there is a pair: nothing was copied yet, or all of it."""
    return [
        Row(
            f"{what} to the secondary blocked",
            R,
            Then.SAME,
            _here("secondary", partial(hosts.block, protocol=protocol, port=port)),
            mend=_here("secondary", hosts.unblock),
            attempt=_NO_ANSWER,
        )
        for what, protocol, port in _PORTS
        if protocol == "tcp"
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


_FILES = [
    ("full", hosts.fill_directory),
    ("read-only", hosts.freeze_directory),
    ("broken", hosts.break_directory),
]
_OFTEN_FILES = {
    ("secondary", "state", "full"),
    ("secondary", "run", "broken"),
    ("primary", "state", "broken"),
}


def _file_rows() -> list[Row]:
    """The directories of the host that is to go on, at the worst moment: the other host dies."""
    return [
        Row(
            f"{role}'s {which} directory {word}, then the other host killed",
            Moment.LOAD,
            then,
            _both(_here(role, partial(do, which=which)), _kill(other, "host")),
            (role, which, word) in _OFTEN_FILES,
            _here(role, partial(hosts.mend_directory, which=which)),
        )
        for role, other, then in (
            ("secondary", "primary", Then.OTHER),
            ("primary", "secondary", Then.SAME),
        )
        for which in ("state", "run")
        for word, do in _FILES
    ]


def _run(*commands: str) -> Callable[[topology.Place], None]:
    """On the host, as its root."""

    def run(place: topology.Place) -> None:
        for command in commands:
            enter = ["nsenter", f"--net=/run/netns/{place.namespace}"]
            subprocess.run([*enter, *command.split()], check=True, timeout=20)

    return run


def _take_programs_off(p: Place) -> None:
    place = p.lab.places[p.primary]
    links = pin_directory(place.bpffs, p.lab.name) / tcx.DIRECTORY
    for name in ("nic0_out", "link"):
        _run(f"bpftool link detach pinned {links / name}")(place)


_LINK, _TAP = topology.LINK_DEVICE, topology.TAP
_QDISC = (f"tc qdisc add dev {_TAP} clsact", f"tc qdisc del dev {_TAP} clsact")


def _harm_rows() -> list[Row]:
    """What other programs of a host, and people, do to devices that are not theirs."""
    return [
        Row("clsact of the primary's tap removed", L, Then.SAME, _here("primary", _run(*_QDISC))),
        Row("programs taken off on the primary", L, Then.SAME, _take_programs_off, True),
        *(
            Row(f"{role}'s {what}", L, Then.SAME, _here(role, _run(f"ip link {command}")), often)
            for role, what, command, often in (
                ("primary", "link device removed", f"del {_LINK}", True),
                ("secondary", "link device removed", f"del {_LINK}", False),
                ("primary", "tap taken off its bridge", f"set {_TAP} nomaster", True),
            )
        ),
        Row("primary's tap removed", L, Then.OTHER, _here("primary", _run(f"ip link del {_TAP}"))),
    ]


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
    *_blocked_in_resync(),
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
    Row(
        "primary's host killed while etcd has no room",
        Moment.LOAD,
        Then.NOBODY,
        _both(_etcd_has_room(False), _kill("primary", "host")),
        mend=_etcd_has_room(True),
    ),
    Row("etcd stopped", Moment.LOAD, Then.SAME, stop_etcd),
    *_disk_rows(),
    *_file_rows(),
    *_harm_rows(),
    Row("primary's wall clock an hour ahead", L, Then.SAME, _here("primary", _ahead), True),
    Row("secondary's wall clock an hour ahead", L, Then.SAME, _here("secondary", _ahead)),
    Row("primary's wall clock an hour back", L, Then.SAME, _here("primary", _back)),
    Row("secondary's wall clock an hour back", L, Then.SAME, _here("secondary", _back), True),
]

ROWS = [*_side_rows(), *_cut_rows(), *_port_rows(), *_LATER]
