# SPDX-License-Identifier: GPL-2.0-only
"""Ports that another VM of this host, or another program, has already; addresses that nobody can
listen on yet."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from colo_ebpf import addresses
from colo_ebpf.config.schema import Config
from colo_ebpf.datapath.net import own_addresses
from colo_ebpf.datapath.net.own_addresses import HostAddress
from colo_ebpf.errors import ControlError

_log = logging.getLogger(__name__)
_ASKED_S = 10.0  # it takes one or two, or one more for each time that an operator has it repeated


@dataclass(frozen=True, slots=True)
class Port:
    """One that this daemon, or its QEMU, is going to listen on."""

    kind: socket.SocketKind
    address: str
    number: int
    key: str  # of [link]

    def __str__(self) -> str:
        protocol = "UDP" if self.kind is socket.SOCK_DGRAM else "TCP"
        return f"{protocol} port {self.number} of {self.address}"


def of_daemon(config: Config) -> list[Port]:
    """For its heartbeats."""
    both, number = (config.link.address, config.management.address), config.link.heartbeat_port
    return [Port(socket.SOCK_DGRAM, one, number, "heartbeat-port") for one in both]


def of_qemu(config: Config) -> list[Port]:
    """For disk and memory of a replica."""
    link = config.link
    keys = {"nbd-port": link.nbd_port, "migration-port": link.migration_port}
    return [Port(socket.SOCK_STREAM, link.address, number, key) for key, number in keys.items()]


def await_addresses(config: Config) -> None:
    """Blocks while others are asked whether they have an IPv6 address of ours; after that whatever
    hinders is written to the log: a VM may have to go on without it."""
    wanted = (config.link.address, config.management.address)
    found = own_addresses.settle(wanted, 0)
    if HostAddress.ASKED_FOR in found.values():
        _tell(found, logging.INFO)
        found = own_addresses.settle(wanted, _ASKED_S)
    _tell(found, logging.WARNING)


def _tell(found: dict[str, HostAddress], level: int) -> None:
    for address, state in found.items():
        if state is not HostAddress.READY:
            _log.log(level, "%s %s", address, state.value)


def require_free(ports: Iterable[Port]) -> None:
    """ControlError names the first one that is taken. What else is wrong with an address may pass
    by: whoever opens the port tells of it."""
    for port in ports:
        try:
            _try(port)
        except OSError as e:
            if e.errno == errno.EADDRINUSE:
                raise ControlError(
                    f"{port} is in use by another VM or program of this host: set link.{port.key} "
                    "to a free one, alike on both hosts"
                ) from e


def _try(port: Port) -> None:
    with socket.socket(addresses.family(port.address), port.kind) as one:
        if port.kind is socket.SOCK_STREAM:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as QEMU does
        one.bind((port.address, port.number))
        if port.kind is socket.SOCK_STREAM:
            one.listen(1)
