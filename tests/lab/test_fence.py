# SPDX-License-Identifier: GPL-2.0-only
"""A pair whose daemons fence and feed a watchdog device: a command that writes down how it was
called, and a FIFO that takes what the device would."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from colo_ebpf.lab import faults, mounts, network, processes
from colo_ebpf.lab.guest import Wanted, choose
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import Place
from tests.capabilities import require
from tests.lab import clean, cli

_DAEMON = Path(__file__).with_name("toy_watchdog.py")
_TIMEOUT_S = 10  # the shortest; fed four times in it
ALIVE, DISARM = b"\0", b"V"
_COMMAND = """#!/bin/sh
{ env | grep ^COLO_ | sort; echo; } >> "$0.calls"
echo "saw it off"
"""


@dataclass
class _Fenced:
    """The lab, and what became of the outside."""

    lab: Lab
    devices: dict[str, int] = field(default_factory=dict)

    def start(self, place: Place) -> None:
        """A daemon that knows the toy device."""
        self.lab.start_daemon(place, (sys.executable, str(_DAEMON)))

    def configure(self, place: Place) -> None:
        """Both tables, before the daemon starts."""
        command, device = place.directory / "fence", place.directory / "watchdog"
        command.write_text(_COMMAND)
        command.chmod(0o700)
        os.mkfifo(device)
        self.devices[place.host] = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
        with place.config.open("a") as file:
            file.write(f'[fence]\ncommand = ["{command}"]\nwhen = "before-solo"\n')
            file.write(f'[watchdog]\ndevice = "{device}"\ntimeout-s = {_TIMEOUT_S}\n')

    def written(self, host: str) -> bytes:
        """To the device, since it was asked last."""
        try:
            return os.read(self.devices[host], 4096)
        except BlockingIOError:
            return b""

    def calls(self, host: str) -> list[dict[str, str]]:
        """Of the command there: the variables of each."""
        path = self.lab.places[host].directory / "fence.calls"
        text = path.read_text() if path.exists() else ""
        blocks = [block for block in text.split("\n\n") if block]
        return [dict(line.split("=", 1) for line in block.splitlines()) for block in blocks]

    def log(self, host: str) -> str:
        return self.lab.places[host].log.read_text()

    def until_fed(self, host: str) -> None:
        """The device is armed, and is fed again."""
        for _ in range(2):
            self.written(host)
            self.lab.wait(lambda: ALIVE in self.written(host), f"{host} does not feed it", 30)


@pytest.fixture
def fenced() -> Iterator[_Fenced]:
    """A protected pair; the primary is a."""
    require("root", "bpf", "qemu", "guest")
    lab = clean(Lab("colotestk"))
    one = _Fenced(lab)
    try:
        lab.build(choose(Wanted()))
        for place in lab.places.values():
            one.configure(place)
            one.start(place)
        lab.wait_protected()
        yield one
    finally:
        lab.down()
        for fd in one.devices.values():
            os.close(fd)


def test_who_is_taken_over_is_fenced_first_and_who_serves_feeds_the_device(
    fenced: _Fenced,
) -> None:
    lab = fenced.lab
    assert fenced.written("b") == DISARM, "looked at when the daemon starts, and not armed"
    fenced.until_fed("a")
    doctor = cli(lab, "a", "doctor")
    assert "fence before-solo" in " ".join(doctor.stdout.split())

    pair_generation = lab.ask("b")["record"]["generation"]
    faults.kill(lab, "a", "host")
    lab.wait(lambda: (lab.ask("b") or {}).get("mode") == "solo", "b does not take over", 60)
    (call,) = fenced.calls("b")
    assert (call["COLO_VM"], call["COLO_HOST"], call["COLO_PEER"]) == (lab.name, "b", "a")
    assert "a is not heard on any path" in call["COLO_REASON"]
    assert int(call["COLO_GENERATION"]) == pair_generation + 1, "of the claim"
    said = fenced.log("b")
    order = ["fencing a before anything leaves", "a is off (saw it off)", "ready to go on alone"]
    places = [said.index(words) for words in order]
    assert places == sorted(places)
    fenced.until_fed("b")

    for place in lab.places.values():  # heal, with our daemon
        if not processes.pids_of(place.namespace, "daemon"):
            _mend(fenced, place)
    lab.wait_protected()
    assert fenced.calls("a") == []

    fenced.written("b")
    done = cli(lab, "b", "switchover", "--yes")
    assert done.returncode == 0, done.stderr
    lab.wait_protected()
    assert (len(fenced.calls("a")), len(fenced.calls("b"))) == (0, 1), "it handed over"
    assert fenced.written("b").endswith(DISARM), "the VM there may not speak"
    fenced.until_fed("a")

    (pid,) = processes.pids_of(lab.places["a"].namespace, "daemon")
    os.kill(pid, signal.SIGTERM)
    lab.wait(lambda: fenced.written("a").endswith(DISARM), "it ends and does not disarm", 30)


def _mend(fenced: _Fenced, place: Place) -> None:
    network.restore(place)
    if place.bpffs not in mounts.mounted(place.bpffs):
        mounts.mount_bpf(place.bpffs)
    fenced.start(place)
