# SPDX-License-Identifier: GPL-2.0-only
"""Tests on a lab. One that was killed may have left its lab up: each begins with a clean one."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from colo_ebpf.lab import processes
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import Guest, Place
from colo_ebpf.lab.workload import PATIENCE_S, served
from tests.capabilities import require
from tests.lab.planes import Planes

LIFE = 7003  # of the guest: what it does to itself
_LOG_BYTES = 12_000
_labs: WeakSet[Lab] = WeakSet()
planes = Lab.keeper = Planes()
# Two labs and the tests themselves share two processors: a daemon may have none for 150 ms.
Lab.timing = {"peer-timeout-ms": 400}


def clean(lab: Lab) -> Lab:
    """The lab, with nothing of its name left."""
    lab.down()
    _labs.add(lab)
    return lab


def logs() -> Iterator[tuple[str, str]]:
    """`Lab.logs` of all labs that are up."""
    for lab in _labs:
        yield from lab.logs(_LOG_BYTES)


Prepare = Callable[[Lab, Place], object]  # changes a host before its daemon starts


def as_it_is(lab: Lab, place: Place) -> None:
    """Nothing to prepare."""


@contextmanager
def protected(
    name: str,
    guest: Guest | None = None,
    arbiter: str = "file",
    prepare: Prepare = as_it_is,
    family: str = "ipv4",
    *,
    security: str = "",
) -> Iterator[Lab]:
    """A lab of this name whose pair is protected; skips where that cannot be."""
    require("root", "bpf", "qemu", "guest", *(["etcd"] if arbiter == "etcd" else []))
    lab = clean(Lab(name, family=family))
    try:
        lab.build(guest or choose(Wanted()), arbiter, security)
        for place in lab.places.values():
            prepare(lab, place)
            lab.start_daemon(place)
        lab.wait_protected()
        yield lab
    except BaseException:
        for path, end in logs():  # they go with the lab, before the failure is reported
            print(f"--- {path}\n{end}")
        raise
    finally:
        lab.down()


def cli(lab: Lab, host: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`colo-ebpf` on a host of the lab, for its VM."""
    return run_cli(lab, host, *words, "--config", str(lab.places[host].config))


def run_cli(lab: Lab, host: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`colo-ebpf` on a host of the lab."""
    place = lab.places[host]
    enter = ["nsenter", f"--net=/run/netns/{place.namespace}"]
    return subprocess.run(
        [*enter, sys.executable, "-m", "colo_ebpf.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def end_daemon(lab: Lab, host: str) -> None:
    """As `systemctl stop` does; back when it is gone."""
    namespace = lab.places[host].namespace
    (pid,) = processes.pids_of(namespace, "daemon")
    processes.send([pid], signal.SIGTERM)
    lab.wait(
        lambda: processes.pids_of(namespace, "daemon") == [],
        f"the daemon of {host} does not end",
        30,
    )


async def power_off(client: Client) -> None:
    """The guest is told to; it answers nothing."""
    life = await served(client, LIFE)
    life.send(b"POWEROFF\n")
    life.close()


class Entries:
    """Entries of the ledger, one after the other over one connection."""

    def __init__(self, lines: Lines) -> None:
        self.lines, self.number = lines, 0

    async def append(self, count: int = 1) -> None:
        """So many more; AssertionError if one is answered wrongly."""
        for _ in range(count):
            self.number += 1
            async with asyncio.timeout(PATIENCE_S):
                reply = await self.lines.ask(f"ADD {self.number} entry")
            assert reply.startswith(f"OK {self.number} "), reply
