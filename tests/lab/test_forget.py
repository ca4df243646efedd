# SPDX-License-Identifier: GPL-2.0-only
"""A VM that is protected no more: `colo-ebpf forget` leaves nothing of it on its hosts.

As found on two hosts with the packages: after a purge each VM's tap, tunnel and delay line were
left, and forty-eight rules of routing.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.datapath.bpf.loader import all_pins
from colo_ebpf.lab.client import Client
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import HOSTS, Place
from tests.capabilities import require
from tests.lab import cli, end_daemon, power_off, protected

_before: dict[str, set[str]] = {}


def _there(place: Place) -> set[str]:
    """What an administrator sees of us on a host, but for what the lab itself made there."""
    lines = set()
    for words in ("-o link", "rule", "-6 rule", "xfrm policy", "xfrm state", "-6 route show all"):
        argv = ["ip", "-n", place.namespace, *words.split()]
        said = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20).stdout
        lines |= {" ".join(line.split()[:2]) for line in said.splitlines()}
    pins = all_pins(place.bpffs)
    paths = [*pins.glob("v*/*"), *_files(place.run_dir), *_overlay_marks(place)]
    return lines | {str(path) for path in paths}


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir()]


def _overlay_marks(place: Place) -> list[Path]:
    return list(place.directory.rglob("colo-ebpf.owner"))


def _note(_: Lab, place: Place) -> None:
    _before[place.host] = _there(place)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Its link goes through a tunnel, which is one thing more that there is to forget."""
    require("wireguard-go")
    with protected("colotforget", prepare=_note, security="wireguard") as one:
        yield one


def _forget(lab: Lab, host: str, *words: str) -> subprocess.CompletedProcess[str]:
    return cli(lab, host, "forget", "--yes", *words)


def test_a_vm_that_runs_is_not_forgotten(lab: Lab) -> None:
    there = {host: _there(lab.places[host]) for host in HOSTS}
    done = _forget(lab, "b")
    assert done.returncode == 2
    assert "a daemon runs already here" in done.stderr
    end_daemon(lab, "b")
    done = _forget(lab, "b")
    assert done.returncode == 2
    assert "runs here: its QEMU has tap0 open. Power the guest off" in done.stderr
    lab.start_daemon(lab.places["b"])
    lab.wait_protected()
    assert _taken(there["b"], _there(lab.places["b"])) == set()


def _taken(before: set[str], now: set[str]) -> set[str]:
    """Logs, sockets and instances come and go."""
    return {one for one in before - now if not one.startswith("/") or "/bpf/" in one}


def test_then_nothing_is_left_of_it(lab: Lab) -> None:
    asyncio.run(power_off(Client(lab.namespace_of("client"), lab.guest_address)))
    lab.wait(lambda: all((lab.ask(h) or {}).get("state") == "off" for h in HOSTS), "it is on")
    for host in HOSTS:
        end_daemon(lab, host)
        place = lab.places[host]
        done = _forget(lab, host, "--json")
        assert done.returncode == 0, done.stderr
        (told,) = json.loads(done.stdout)
        assert {"tap0", "vxlan0", str(place.run_dir)} <= set(told["removed"]), told
        assert _there(place) - _before[host] == set()
        assert place.disk.exists()
        again = _forget(lab, host)
        assert (again.returncode, again.stdout.endswith(": there was nothing\n")) == (0, True)


def test_it_can_be_protected_again(lab: Lab) -> None:
    for host in HOSTS:
        lab.start_daemon(lab.places[host])
    lab.wait(lambda: all((lab.ask(h) or {}).get("state") == "off" for h in HOSTS), "it is not off")
    image = "a" if cli(lab, "a", "start").returncode == 0 else "b"
    if image == "b":
        assert cli(lab, "b", "start").returncode == 0
    lab.wait_protected()
