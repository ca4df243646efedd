# SPDX-License-Identifier: GPL-2.0-only
"""Real addresses in namespaces: what is waited for, and what is not."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control.host import sockets
from colo_ebpf.datapath.net import namespaces, netdev, own_addresses
from colo_ebpf.datapath.net.own_addresses import HostAddress

_LONG_S = 200  # nothing here takes as long: a wait that does not end fails by the test's own limit
_OURS, _THEIRS = "2001:db8::1", "2001:db8::2"


@pytest.fixture
def ends() -> Iterator[tuple[str, str]]:
    """Two hosts with a wire between them."""
    names = (f"colot{os.getpid()}ha", f"colot{os.getpid()}hb")
    try:
        for name in names:
            namespaces.create(name)
        namespaces.create_veth("link0", "link0", *names, 1600)
        yield names
    finally:
        for name in names:
            namespaces.remove(name)


def _give(namespace: str, address: str) -> None:
    """As an operator does: others are asked whether they have it."""
    argv = ["ip", "-n", namespace, "address", "add", f"{address}/64", "dev", "link0"]
    subprocess.run(argv, check=True, timeout=10)


def _look(namespace: str, address: str) -> HostAddress:
    return namespaces.run_in(namespace, lambda: own_addresses.look(address))


def _settle(namespace: str, address: str) -> HostAddress:
    return namespaces.run_in(namespace, lambda: own_addresses.settle([address], _LONG_S))[address]


def test_a_new_address_is_waited_for(ends: tuple[str, str]) -> None:
    _give(ends[0], _OURS)
    assert _look(ends[0], _OURS) is HostAddress.ASKED_FOR
    assert _settle(ends[0], "2001:db8:0:0::1") is HostAddress.READY


def test_a_daemon_waits_until_it_can_listen(
    ends: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    text = EXAMPLE.replace('"192.0.2.1"', f'"{_OURS}"')
    parsed = parse_config(text.replace('"192.0.2.2"', f'"{_THEIRS}"'), Path("config.toml"))

    def listen() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
            one.bind((_OURS, parsed.link.heartbeat_port))

    _give(ends[0], _OURS)
    with pytest.raises(OSError, match="Cannot assign requested address"):
        namespaces.run_in(ends[0], listen)
    with caplog.at_level(logging.INFO):
        namespaces.run_in(ends[0], lambda: sockets.await_addresses(parsed))
    namespaces.run_in(ends[0], listen)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith(f"{_OURS} is being asked for")
    assert said[-1] == f"{parsed.management.address} {HostAddress.ABSENT.value}"


def test_one_that_another_host_has_is_told(ends: tuple[str, str]) -> None:
    _give(ends[1], _OURS)
    assert _settle(ends[1], _OURS) is HostAddress.READY
    _give(ends[0], _OURS)
    assert _settle(ends[0], _OURS) is HostAddress.DUPLICATE


def test_without_a_carrier_nobody_is_waited_for(ends: tuple[str, str]) -> None:
    namespaces.run_in(ends[1], lambda: netdev.set_down("link0"))
    _give(ends[0], _OURS)
    assert _settle(ends[0], _OURS) is HostAddress.UNASKED


def test_others_are_as_they_are(ends: tuple[str, str]) -> None:
    namespaces.run_in(ends[0], lambda: netdev.add_address("link0", "192.0.2.1", 24))
    assert _settle(ends[0], "192.0.2.1") is HostAddress.READY
    assert _settle(ends[0], "192.0.2.2") is HostAddress.ABSENT
    assert _settle(ends[0], _THEIRS) is HostAddress.ABSENT
