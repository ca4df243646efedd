# SPDX-License-Identifier: GPL-2.0-only
"""What is between hosts a and b, in a namespace: the link, a management network with etcd, and the
network of the clients. The namespace is a client, too."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

LINK, MANAGEMENT, CLIENTS = "192.0.2", "198.51.100", "203.0.113"  # each a /24
ETCD = f"http://{MANAGEMENT}.254:2379"
HOSTS = {"a": 1, "b": 2}  # with the last part of their addresses
MTUS = {"lnk": 1700, "mgt": 1500, "cli": 1500}  # of the bridges, by their names

_TABLES = """
[host]
name = "{host}"
[peer]
name = "{peer}"
link-address = "{link}.{theirs}"
management-address = "{management}.{theirs}"
key-file = "/etc/colo-ebpf/key"
[link]
address = "{link}.{ours}"
underlay = "eth0"
security = "{security}"
[management]
address = "{management}.{ours}"
[arbiter]
kind = "etcd"
endpoints = ["{etcd}"]
"""


def tables_of(host: str, security: str = "auto") -> str:
    """Of a host's configuration: what all its VMs share."""
    (peer,) = HOSTS.keys() - {host}
    return _TABLES.format(
        host=host,
        peer=peer,
        link=LINK,
        management=MANAGEMENT,
        ours=HOSTS[host],
        theirs=HOSTS[peer],
        security=security,
        etcd=ETCD,
    )


class Host:
    """One of them, as whoever emulates it reaches it."""

    name: str

    def ask(self, command: str, within_s: float = 300) -> subprocess.CompletedProcess[str]:
        """As root, in its shell."""
        raise NotImplementedError

    def run(self, command: str, within_s: float = 300) -> str:
        """What it printed; it has to end well."""
        done = self.ask(command, within_s)
        assert done.returncode == 0, f"{self.name}: {command}:\n{done.stdout}{done.stderr}"
        return done.stdout


def ip(namespace: str, *words: str) -> None:
    """iproute2 there."""
    subprocess.run(["ip", "-n", namespace, *words], check=True, stdin=subprocess.DEVNULL)


def plug(namespace: str, bridge: str, device: str) -> None:
    """A device of the namespace becomes a port of one of its bridges."""
    ip(namespace, "link", "set", device, "master", bridge, "mtu", str(MTUS[bridge]), "up")


@contextmanager
def networks(namespace: str, directory: Path) -> Iterator[None]:
    """Bridges without a port, and etcd, which keeps its data in `directory`."""
    with ExitStack() as made:
        subprocess.run(["ip", "netns", "add", namespace], check=True)
        made.callback(subprocess.run, ["ip", "netns", "delete", namespace], check=True)
        for name, mtu in MTUS.items():
            ip(namespace, "link", "add", name, "type", "bridge")
            ip(namespace, "link", "set", name, "mtu", str(mtu), "up")
        ip(namespace, "link", "set", "lo", "up")
        ip(namespace, "address", "add", f"{MANAGEMENT}.254/24", "dev", "mgt")
        ip(namespace, "address", "add", f"{CLIENTS}.254/24", "dev", "cli")
        made.enter_context(_etcd(namespace, directory))
        yield


@contextmanager
def _etcd(namespace: str, directory: Path) -> Iterator[None]:
    words = [
        *("ip", "netns", "exec", namespace, "etcd", "--data-dir", str(directory / "etcd")),
        *("--listen-client-urls", ETCD, "--advertise-client-urls", ETCD),
        *("--listen-peer-urls", "http://127.0.0.1:2380"),
    ]
    with (directory / "etcd.log").open("wb") as log:
        etcd = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        etcd.kill()
        etcd.wait()
