# SPDX-License-Identifier: GPL-2.0-only
"""Who is neither QEMU nor its peer tries the secondary's ports, from wherever there is a way.

As found: a client, the guest itself, every user of either host and whoever was on the link opened
the export of the guest's disk; and one that had connected and said nothing held up a takeover.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from colo_ebpf.config.reading import load_config
from colo_ebpf.datapath.net import namespaces
from colo_ebpf.lab import faults, topology
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.workload import LEDGER, served
from tests.lab import Entries, cli, protected

_NOBODY = 65_534
_CONNECT = """
import socket, sys
one = socket.socket()
one.settimeout(1)
try:
    if sys.argv[3]:
        one.bind((sys.argv[3], 0))
    one.connect((sys.argv[1], int(sys.argv[2])))
    print("in")
except OSError as e:
    print(type(e).__name__)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Host a has the primary."""
    with protected("colotstrange") as one:
        yield one


def _ports(lab: Lab) -> tuple[int, int]:
    link = load_config(lab.places["b"].config).link
    return link.nbd_port, link.migration_port


def _try(namespace: str, to: str, port: int, *, user: int = 0, source: str = "") -> str:
    """What comes of it: `in`, or how it failed."""
    done = subprocess.run(
        [
            *("nsenter", f"--net=/run/netns/{namespace}", "setpriv"),
            *("--reuid", str(user), "--regid", str(user), "--clear-groups"),
            *("/usr/bin/python3", "-I", "-c", _CONNECT, to, str(port), source),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.strip()


def _ip(namespace: str, *words: str) -> None:
    subprocess.run(["ip", "-n", namespace, *words], check=True, timeout=10)


def test_users_of_the_primarys_host_are_refused(lab: Lab) -> None:
    a, b = lab.places["a"], lab.places["b"]
    nbd, migration = _ports(lab)
    for port in (nbd, migration):
        assert _try(a.namespace, b.link_address, port, user=_NOBODY) == "PermissionError"
    assert _try(a.namespace, b.link_address, nbd, user=b.user) == "PermissionError"
    # It looks at what is told from the rest: QEMU's user there is let through.
    assert _try(a.namespace, b.link_address, nbd, user=a.user) == "in"
    assert _try(a.namespace, b.link_address, migration, user=a.user) == "ConnectionRefusedError"


def test_users_of_the_secondarys_host_get_no_answer(lab: Lab) -> None:
    b = lab.places["b"]
    nbd, _ = _ports(lab)
    for user in (0, b.user, _NOBODY):
        assert _try(b.namespace, b.link_address, nbd, user=user) == "TimeoutError"


def test_another_address_of_the_link_gets_no_answer(lab: Lab) -> None:
    a, b = lab.places["a"], lab.places["b"]
    nbd, _ = _ports(lab)
    _ip(a.namespace, "address", "add", "10.77.1.9/24", "dev", topology.LINK)
    try:
        assert _try(a.namespace, b.link_address, nbd, source="10.77.1.9") == "TimeoutError"
    finally:
        _ip(a.namespace, "address", "del", "10.77.1.9/24", "dev", topology.LINK)


def test_a_client_gets_no_answer_by_way_of_the_bridge(lab: Lab) -> None:
    """Where the host has an address among the clients."""
    b, client = lab.places["b"], lab.namespace_of("client")
    nbd, _ = _ports(lab)
    _ip(b.namespace, "address", "add", "192.168.77.3/24", "dev", topology.BRIDGE)
    _ip(client, "route", "add", b.link_address, "via", "192.168.77.3")
    try:
        assert _try(client, b.link_address, nbd) == "TimeoutError"
    finally:
        _ip(client, "route", "del", b.link_address)
        _ip(b.namespace, "address", "del", "192.168.77.3/24", "dev", topology.BRIDGE)


def _held(lab: Lab, stack: ExitStack, behave: Callable[[socket.socket], object]) -> None:
    """A connection that root of the primary's host holds: the one stranger that is let in."""
    b = lab.places["b"]
    nbd, _ = _ports(lab)

    def connect() -> socket.socket:
        return socket.create_connection((b.link_address, nbd), timeout=10)

    one = stack.enter_context(namespaces.run_in(lab.places["a"].namespace, connect))
    behave(one)


def _asks_and_never_reads(one: socket.socket) -> None:
    """A handshake, and then lists of exports without end, whose answers nobody takes."""
    one.recv(18)
    one.sendall((3).to_bytes(4, "big"))
    one.setblocking(False)
    ask = b"IHAVEOPT" + (3).to_bytes(4, "big") + bytes(4)
    try:
        while True:
            one.send(ask * 512)
    except BlockingIOError:
        return


def test_connections_that_say_nothing_ask_half_or_never_read_delay_nothing(lab: Lab) -> None:
    async def scenario() -> None:
        client = Client(lab.namespace_of("client"), lab.guest_address)
        entries = Entries(Lines(await served(client, LEDGER)))
        asked = await asyncio.to_thread(cli, lab, "a", "checkpoint")
        assert asked.returncode == 0, asked.stderr
        await entries.append(3)
        await asyncio.to_thread(faults.kill, lab, "a", "host")
        await entries.append(3)

    with ExitStack() as stack:
        _held(lab, stack, lambda one: None)
        _held(lab, stack, lambda one: one.sendall(b"\x00\x00"))
        _held(lab, stack, _asks_and_never_reads)
        asyncio.run(scenario())
