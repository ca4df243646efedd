# SPDX-License-Identifier: GPL-2.0-only
"""A VM whose NIC has an MTU of 9000: it is protected, compared, taken over, protected again."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from collections.abc import Iterator

import pytest

from colo_ebpf.datapath.net import namespaces, netdev, tunnel
from colo_ebpf.lab import faults
from colo_ebpf.lab.checksum import checksum
from colo_ebpf.lab.client import Client
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import BRIDGE, CLIENT_BRIDGE, LINK, UPLINK, Place
from colo_ebpf.lab.workload import Dice, Download, Ledger, until_serving
from tests.lab import protected

MTU = 9000
_IP_BYTES = 20
_ECHO_BYTES = MTU - _IP_BYTES - 8
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2
_PATIENCE_S = 60.0


def _jumbo(lab: Lab, place: Place) -> None:
    def host() -> None:
        netdev.set_up(LINK, MTU + tunnel.overhead_bytes(place.link_address))
        for device in (UPLINK, BRIDGE):
            netdev.set_up(device, MTU)

    def client() -> None:
        for device in (f"{place.host}0", CLIENT_BRIDGE):
            netdev.set_up(device, MTU)

    namespaces.run_in(place.namespace, host)
    namespaces.run_in(lab.namespace_of("client"), client)
    text, changed = re.subn("(?m)^mtu = 1500$", f"mtu = {MTU}", place.config.read_text())
    assert changed == 1
    place.config.write_text(text)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with protected("colotjumbo", prepare=_jumbo) as made:
        yield made


async def _echo(client: Client) -> None:
    """A message of the MTU comes back, and nobody may cut it into fragments."""
    loop = asyncio.get_running_loop()
    data = os.urandom(_ECHO_BYTES)
    ask, answer = (struct.pack("!BBHHH", kind, 0, 0, 7, 1) + data for kind in (8, 0))
    with client.icmp() as s:
        s.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        async with asyncio.timeout(_PATIENCE_S):
            await loop.sock_sendall(s, ask[:2] + struct.pack("!H", checksum(ask)) + ask[4:])
            said = await loop.sock_recv(s, 65536)
    assert said[_IP_BYTES + 4 :] == answer[4:]


def test_it_outlives_its_host_and_is_protected_again(lab: Lab) -> None:
    """As found: the daemon ended with `bpf: test run: Invalid argument`."""
    client = Client(lab.namespace_of("client"), lab.guest_address)
    books, dice, file = Ledger(client), Dice(client), Download(client, 40_000_000, 8_000_000)

    async def work() -> None:
        await until_serving(client)
        await _echo(client)
        stop = asyncio.Event()
        running = [asyncio.create_task(one.run(stop)) for one in (books, dice)]
        download = asyncio.create_task(file.run())
        async with asyncio.timeout(_PATIENCE_S):
            while file.received_bytes < file.total_bytes // 3 or not dice.seen:
                await asyncio.sleep(0.05)
        await asyncio.to_thread(faults.kill, lab, "a", "host")
        await download
        await _echo(client)
        await dice.roll()
        stop.set()
        await asyncio.gather(*running)
        await books.recheck()
        await dice.recheck()

    asyncio.run(work())
    assert file.ok and books.wrong == [] and dice.wrong == []
    told = lab.ask("b")
    assert told["state"] == "solo", told["sentence"]
    lab.heal()
    lab.wait_protected()
    asyncio.run(_echo(client))


def test_the_guest_uses_it(lab: Lab) -> None:
    client = Client(lab.namespace_of("client"), lab.guest_address)

    async def segment_bytes() -> int:
        await until_serving(client)
        with await client.connect(7) as s:
            await asyncio.get_running_loop().sock_sendall(s, b"hello")
            return s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)

    assert asyncio.run(segment_bytes()) > MTU - 100
