# SPDX-License-Identifier: GPL-2.0-only
"""What can be broken in a lab. A host that is killed loses what its kernel kept, too."""

from __future__ import annotations

import signal

from colo_ebpf.control.qemu.cmdline import REPLICAS
from colo_ebpf.datapath.net import namespaces, netdev
from colo_ebpf.errors import LabError
from colo_ebpf.lab import network, processes
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import (
    ARBITER,
    BRIDGE,
    HOSTS,
    LINK,
    MANAGEMENT,
    UPLINK,
    directory,
)

WHAT = ("vm", "daemon", "host")
_STAYS = ("lo", BRIDGE, UPLINK, LINK, MANAGEMENT, ARBITER)
PATHS = ("link", "management", "all", "arbiter")


def _running(lab: Lab, host: str, what: str) -> list[int]:
    """Their pids; LabError if there are none."""
    pids = processes.pids_of(lab.places[host].namespace, what)
    if not pids:
        raise LabError(f"host {host}: no {what} runs there")
    return pids


def kill(lab: Lab, host: str, what: str) -> list[int]:
    """SIGKILL; for `host` everything that runs there at once, wires first. Returns the pids."""
    place, pids = lab.places[host], _running(lab, host, what)
    if what == "host":
        network.cut(place, *network.wires(place))
    processes.send(pids, signal.SIGKILL)
    if what == "host":
        processes.end(place.namespace)
        namespaces.run_in(place.namespace, _forget)
        lab.power_off(place)
        for run_dir in directory(lab.name).glob(f"{host}*/{place.run_dir.name}"):
            (run_dir / REPLICAS).unlink(missing_ok=True)  # /run is empty after a boot
    return pids


def _forget() -> None:
    for device in netdev.names():
        if device not in _STAYS:
            netdev.remove(device)


def hang(lab: Lab, host: str, what: str) -> list[int]:
    """SIGSTOP, the daemon and QEMU together for `host`. Returns the pids."""
    pids = _running(lab, host, what)
    processes.send(pids, signal.SIGSTOP)
    return pids


def cut(lab: Lab, path: str, host: str = "") -> None:
    """Nothing passes between the hosts on `link`, `management`, or both (`all`); or nothing to
    the `arbiter`, from one host or from both."""
    if path == "arbiter":
        _cut_arbiter(lab, [host] if host else list(HOSTS))
        return
    if host:
        raise LabError(f"{path} is between the hosts: only `cut arbiter` is for one of them")
    devices = {"link": (LINK,), "management": (MANAGEMENT,), "all": (LINK, MANAGEMENT)}
    if path not in devices:
        raise LabError(f"{path}: not one of {', '.join(PATHS)}")
    network.cut(lab.places["a"], *devices[path])


def _cut_arbiter(lab: Lab, hosts: list[str]) -> None:
    if lab.arbiter != "etcd":
        raise LabError(
            f"lab {lab.name} keeps its record in a directory of this machine, which nothing can "
            "cut off: `colo-ebpf lab up --arbiter etcd`"
        )
    for host in hosts:
        network.cut(lab.places[host], ARBITER)
