# SPDX-License-Identifier: GPL-2.0-only
"""Connections whose packets get no answer are told from links that are cut, slow or lossy."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from colo_ebpf.control.qemu.stalls import Secondary, Stalls, StallWatch, sentence
from colo_ebpf.datapath.net import namespaces, sockdiag
from colo_ebpf.errors import DatapathError
from colo_ebpf.model import Sending
from tests.capabilities import require

_DISK, _LIMIT_MS = 20001, 1000
_TO = Secondary("b", "127.0.0.1", {_DISK: "link.nbd-port, writes of the disk", 20002: "the other"})


def _sent(tries: int, silent_ms: int = 5000, unanswered: int = 3, here: int = 9) -> Sending:
    return Sending(here, _DISK, True, unanswered, tries, silent_ms)


def _made(tries: int) -> Sending:
    return Sending(9, _DISK, False, 1, tries, 0)


def test_what_is_never_acknowledged_stalls() -> None:
    stalls = Stalls(_LIMIT_MS)
    assert stalls.look([_sent(0, 0)], True) == ()
    assert stalls.look([_sent(1, 250)], True) == (), "one segment may be lost"
    assert stalls.look([_sent(2, 750)], True) == (), "the network may be slow"
    assert stalls.look([_sent(2, 1000)], True) == (_DISK,)
    assert stalls.look([_sent(0, 3)], True) == (), "it goes on"


def test_an_idle_connection_and_one_whose_peer_does_not_read_do_not() -> None:
    stalls = Stalls(_LIMIT_MS)
    for tries in (0, 5):  # probes of a closed window count as tries
        assert stalls.look([_sent(tries, 60_000, unanswered=0)], True) == ()


def test_one_that_cannot_be_made_stalls_at_its_second_try() -> None:
    stalls = Stalls(_LIMIT_MS)
    assert stalls.look([], True) == ()
    assert stalls.look([_made(0)], True) == ()
    assert stalls.look([_made(1)], True) == (_DISK,)


def test_tries_of_a_cut_link_do_not_count() -> None:
    """Else a link that is back would part the pair that it has just got back."""
    stalls = Stalls(_LIMIT_MS)
    assert stalls.look([_sent(0)], True) == ()
    for tries in (2, 4, 5):
        assert stalls.look([_sent(tries)], False) == ()
    assert stalls.look([_sent(5)], True) == (), "the next try of the kernel may take a while"
    assert stalls.look([_sent(6)], True) == ()
    assert stalls.look([_sent(7)], True) == (_DISK,)


def test_a_new_connection_begins_anew() -> None:
    stalls = Stalls(_LIMIT_MS)
    assert stalls.look([_sent(7, here=9)], True) == ()
    assert stalls.look([_sent(1, here=10)], True) == ()
    assert stalls.look([_sent(2, here=10)], True) == (_DISK,)


def test_the_sentence_names_ports_and_keys() -> None:
    assert sentence((), _TO) == ""
    assert sentence((_DISK, 20002), _TO) == (
        "the link carries heartbeats, but b does not answer on TCP port 20001 (link.nbd-port, "
        "writes of the disk) and TCP port 20002 (the other): a firewall?"
    )


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_kernel_says_which_connections_there_are(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        assert sockdiag.sending(address, port) == ()
        with socket.create_connection((address, port)) as client:
            (found,) = sockdiag.sending(address, port)
            assert (found.here, found.port) == (client.getsockname()[1], port)
            assert (found.connected, found.unanswered, found.tries) == (True, 0, 0)
            other = "127.0.0.2" if family == socket.AF_INET else "::2"
            assert sockdiag.sending(other, port) == ()


async def test_a_kernel_that_does_not_say_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(address: str, port: int) -> tuple[Sending, ...]:
        raise DatapathError("sock_diag: no such module")

    monkeypatch.setattr("colo_ebpf.control.qemu.stalls._LOOK_S", 0.0)
    caplog.set_level(logging.WARNING)
    said: list[str] = []
    watch = StallWatch(_TO, _LIMIT_MS, refuses)
    task = asyncio.create_task(watch.run(lambda: True, said.append))
    while len(said) < 3:
        await asyncio.sleep(0)
    task.cancel()
    assert set(said) == {""}
    assert len(caplog.messages) == 1


@pytest.fixture
def walled() -> Iterator[str]:
    """A namespace whose own port 7777 a firewall drops."""
    require("root", "nft")
    name = "colotstall"
    rule = "tcp dport 7777 drop"
    chain = "add chain inet t in { type filter hook input priority 0; }"
    commands = [
        ["ip", "link", "set", "lo", "up"],
        ["nft", f"add table inet t; {chain}; add rule inet t in {rule}"],
    ]
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=60)
    try:
        for command in commands:
            enter = ["nsenter", f"--net=/run/netns/{name}"]
            subprocess.run([*enter, *command], check=True, timeout=60)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True, timeout=60)


def test_the_kernel_says_that_nobody_answers(walled: str) -> None:
    """While a connection is made the kernel tries again, and does not call that backing off."""

    def ask() -> Sending:
        with socket.socket() as one:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", 7777))
            while True:
                (found,) = sockdiag.sending("127.0.0.1", 7777)
                if found.tries:
                    return found
                time.sleep(0.1)

    assert not namespaces.run_in(walled, ask).connected
