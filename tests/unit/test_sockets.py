# SPDX-License-Identifier: GPL-2.0-only
"""A port that somebody else has is told before anything is done."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from colo_ebpf import addresses
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.control.host import sockets
from colo_ebpf.control.host.sockets import Port
from colo_ebpf.errors import ControlError

_KINDS = (socket.SOCK_DGRAM, socket.SOCK_STREAM)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", _KINDS)
def test_one_that_is_taken_is_refused(kind: socket.SocketKind, address: str) -> None:
    with socket.socket(addresses.family(address), kind) as other:
        other.bind((address, 0))
        if kind is socket.SOCK_STREAM:
            other.listen()
        number = other.getsockname()[1]
        port = Port(kind, address, number, "nbd-port")
        with pytest.raises(ControlError, match=rf"{number} of {address} .* set link.nbd-port"):
            sockets.require_free([port])
    sockets.require_free([port])


def test_an_address_that_is_not_there_is_no_collision() -> None:
    sockets.require_free(
        Port(kind, address, 20_000, "nbd-port")
        for kind in _KINDS
        for address in ("192.0.2.77", "2001:db8::77")
    )


def test_all_ports_of_a_vm_are_looked_at() -> None:
    parsed = parse_config(EXAMPLE, Path("config.toml"))
    keys = [one.key for one in (*sockets.of_daemon(parsed), *sockets.of_qemu(parsed))]
    assert keys == ["heartbeat-port", "heartbeat-port", "nbd-port", "migration-port"]
