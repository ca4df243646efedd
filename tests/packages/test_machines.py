# SPDX-License-Identifier: GPL-2.0-only
"""The packages in `$COLO_MACHINES` on two machines with Debian's kernel, its systemd and AppArmor.

Labs start daemons themselves, with this host's kernel. What only a unit does (its umask, its
limits, the order of a shutdown) and what only Debian's kernel does is seen here: `make machines`.
It takes most of an hour, and nothing should run beside it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import colo_ebpf
from tests.capabilities import ROOT, require
from tests.packages import fresh, machines, middle
from tests.packages.machines import Machine, until

_STEP_S = 1200.0
# Says each line again that it is given, as the guest's port 7 does, over one connection.
_CLIENT = f"""
import socket, sys
with socket.create_connection(("{machines.GUEST}", 7), timeout={_STEP_S}) as s:
    for line in sys.stdin:
        s.sendall(line.encode())
        print(s.makefile().readline(), end="", flush=True)
"""
_METRICS = """
from urllib.request import urlopen
print(urlopen("http://127.0.0.1:9949/metrics").read().decode())
"""


class Client:
    """One TCP connection to the guest, which has to live through all of it."""

    def __init__(self) -> None:
        words = ("ip", "netns", "exec", machines.NAMESPACE, "/usr/bin/python3", "-c", _CLIENT)
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def asks(self, word: str) -> bool:
        """The guest answers; False if there is no connection (any more)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return self._process.stdout.readline() == f"{word}\n"

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def _connected(clients: list[Client]) -> bool:
    """Until the guest has booted nobody answers its address."""
    clients.append(Client())
    if clients[-1].asks("hello"):
        return True
    clients.pop().end()
    return False


@pytest.fixture
def hosts() -> Iterator[dict[str, Machine]]:
    """Both on, with the packages and VM web's configuration; nothing of it is started."""
    where = os.environ.get("COLO_MACHINES")
    if not where:
        pytest.skip("takes most of an hour and Debian's mirror: run `make machines`")
    require("root", "debootstrap", "qemu", "guest")
    packages = sorted(Path(where).absolute().glob("colo-ebpf_*.deb"))
    with tempfile.TemporaryDirectory(prefix="colo-test-machines-") as name:
        directory = Path(name)
        root = directory / "fresh"
        root.mkdir()
        try:
            guest = ROOT / "build" / "guest"
            machines.make_system(
                fresh.debian(root, fresh.release_of(packages[0])), directory, packages, guest
            )
        finally:
            fresh.remove(root)
        made = {host: Machine(host, directory) for host in middle.HOSTS}
        with machines.network(directory):
            try:
                for one in made.values():
                    one.start()
                for one in made.values():
                    one.until_up()
                yield made
            finally:
                for one in made.values():
                    one.kill()


def _metrics(host: Machine) -> str:
    """Empty while nobody tells them."""
    return host.ask(f"/usr/bin/python3 -c '{_METRICS}'").stdout


@pytest.mark.timeout(2 * 3600)
def test_a_pair_lives_through_a_shutdown_and_the_death_of_a_host(
    hosts: dict[str, Machine], say: Callable[[str], None]
) -> None:
    a, b = hosts["a"], hosts["b"]
    clients: list[Client] = []

    def protected(serves: Machine) -> None:
        def is_so() -> bool:
            found = serves.status()
            return bool(found.get("protected")) and found["state"] == "primary"

        try:
            until(is_so, f"{serves.name} serves, protected", _STEP_S)
        except AssertionError:
            for host in hosts.values():
                say(f"{host.name}: {host.journal()}")
            raise

    for host in hosts.values():
        file = "/etc/colo-ebpf/vms/web.toml"
        host.run(f"cat > {file} <<'END'\n{machines.config_of(host.name)}\nEND")
        host.run(f"sysctl --system && colo-ebpf config check {file}")
    a.run("colo-ebpf arbiter init web --yes")
    for host in hosts.values():
        host.run("colo-ebpf doctor web")
        host.run("systemctl enable --now --no-block colo-ebpf@web colo-ebpf-drain")
    try:
        protected(a)
        say("protected")
        assert a.run("cat /sys/module/apparmor/parameters/enabled") == "Y\n"
        a.run("systemctl start --no-block colo-ebpf-metrics")
        until(lambda: _connected(clients), "the guest answers", 2 * _STEP_S)
        say("the guest answers")
        (client,) = clients
        until(lambda: "colo_ebpf_protected" in _metrics(a), "the metrics are there", _STEP_S)
        metrics = _metrics(a)
        assert f'build_info{{version="{colo_ebpf.__version__}"}} 1.0' in metrics
        assert 'colo_ebpf_protected{host="a",vm="web"} 1.0' in metrics

        a.run("systemctl poweroff --no-block")
        a.wait_off(_STEP_S)
        assert client.asks("after the shutdown of a")
        assert b.status()["state"] == "solo"
        assert "drain of a" in b.run("colo-ebpf history web"), "a was not just found dead"
        say("a is off, b serves")

        a.start()
        a.until_up()
        protected(b)
        assert "bytes were unlike" in b.run("journalctl -u colo-ebpf@web -o cat")
        say("protected again")
        b.kill()
        assert client.asks("after the death of b")
        assert a.status()["state"] == "solo"
        say("b is dead, a serves")
    finally:
        for one in clients:
            one.end()
