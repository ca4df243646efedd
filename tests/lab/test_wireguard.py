# SPDX-License-Identifier: GPL-2.0-only
"""A pair whose link goes through WireGuard: wireguard-go's where the kernel has none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from colo_ebpf.config.reading import load_config
from colo_ebpf.control import settings
from colo_ebpf.datapath.net import namespaces, netdev, xfrm
from colo_ebpf.lab import faults
from colo_ebpf.lab.client import Client, Lines
from colo_ebpf.lab.lab import Lab
from colo_ebpf.lab.topology import LINK
from colo_ebpf.lab.workload import LEDGER, served
from tests.capabilities import require
from tests.lab import Entries, cli, protected

_UDP, _ETH_P_ALL = 17, 3
_ASKS = {"0806", (58, 0), (0, 0)}  # where an address is: ARP, ICMPv6, MLD
_SECRET = b" entry"  # of what is written into the ledger, and comes back


class _Observer:
    """Reads along on the wire of the link."""

    def __init__(self, lab: Lab) -> None:
        self.frames: list[bytes] = []
        self._ends = False
        self._socket = namespaces.run_in(lab.places["a"].namespace, self._open)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    @staticmethod
    def _open() -> socket.socket:
        one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # hears nothing before `bind`
        one.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
        one.bind((LINK, _ETH_P_ALL))
        one.settimeout(0.2)
        return one

    def _read(self) -> None:
        while not self._ends:
            with contextlib.suppress(TimeoutError):
                self.frames.append(self._socket.recv(1 << 17))

    def end(self) -> list[bytes]:
        """All that it saw."""
        self._ends = True
        self._thread.join()
        self._socket.close()
        return self.frames


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    require("wireguard-go")
    if why := xfrm.why_no_policies():
        pytest.skip(f"the kernel cannot close a port to others: {why}")
    with protected("colotwg", security="wireguard") as one:
        yield one


def _link(lab: Lab, host: str) -> dict[str, Any]:
    return dict((lab.ask(host) or {}).get("link", {}))


def _wait_agreed(lab: Lab) -> None:
    lab.wait(
        lambda: all(_link(lab, host).get("agreed") for host in "ab"), "no session of the tunnel", 60
    )


def _generation(lab: Lab) -> int:
    return int((lab.ask("a") or {})["record"]["generation"])


def _ports(lab: Lab) -> tuple[int, int]:
    link = load_config(lab.places["a"].config).link
    return link.wireguard_port, link.heartbeat_port


def _what(frame: bytes) -> tuple[int, int] | str:
    """Protocol and destination port of IP, or the Ethernet type."""
    kind, ip = frame[12:14], frame[14:]
    if kind == b"\x08\x00":
        at, protocol = 4 * (ip[0] & 15), ip[9]
    elif kind == b"\x86\xdd":
        at, protocol = 40, ip[6]
    else:
        return kind.hex()
    return protocol, int.from_bytes(ip[at + 2 : at + 4]) if protocol == _UDP else 0


def test_status_says_what_seals_the_link(lab: Lab) -> None:
    _wait_agreed(lab)
    for host in "ab":
        one = _link(lab, host)
        assert (one["security"], one["warning"], one["refused"]) == ("wireguard", "", {})
        assert "sealed by WireGuard" in cli(lab, host, "status").stdout
    assert _link(lab, "a")["opens"] == _link(lab, "b")["seals_with"]


def test_an_observer_sees_nothing_but_the_tunnel_and_heartbeats(lab: Lab) -> None:
    """Frames, checkpoints, writes to the disk, and the copy of a new replica."""
    wireguard, heartbeats = _ports(lab)

    async def work() -> None:
        client = Client(lab.namespace_of("client"), lab.guest_address)
        entries = Entries(Lines(await served(client, LEDGER)))
        await entries.append(20)
        asked = await asyncio.to_thread(cli, lab, "a", "checkpoint")
        assert asked.returncode == 0, asked.stderr
        await entries.append(20)
        await asyncio.to_thread(faults.kill, lab, "b", "vm")
        await entries.append(5)
        await asyncio.to_thread(lab.wait_protected)
        await entries.append(5)

    seen = _Observer(lab)
    try:
        asyncio.run(work())
    finally:
        frames = seen.end()
    passed = {_what(one) for one in frames}
    assert passed <= {(_UDP, wireguard), (_UDP, heartbeats)} | _ASKS
    sealed = [one for one in frames if _what(one) == (_UDP, wireguard)]
    assert sum(map(len, sealed)) > 10 << 20, "memory of a replica passed by"
    assert not [one for one in frames if _SECRET in one]


def test_the_pairs_key_is_changed_and_the_pair_stays_protected(lab: Lab) -> None:
    _wait_agreed(lab)
    generation, before = _generation(lab), (lab.ask("a") or {})["key"]["speaks"]
    said = "the tunnel to b has the end and the key that it told"
    told = lab.places["a"].log.read_text().count(said)
    assert cli(lab, "a", "key", "rotate").returncode == 0  # the hosts of a lab share the files

    def changed() -> bool:
        keys = [(lab.ask(host) or {}).get("key", {}) for host in "ab"]
        return all(one.get("changed") and one.get("speaks") != before for one in keys)

    lab.wait(changed, "the key does not change", 60)
    lab.wait(lambda: lab.places["a"].log.read_text().count(said) > told, "not told", 60)
    assert cli(lab, "a", "key", "rotate").returncode == 0
    lab.wait_protected()
    _wait_agreed(lab)
    assert _generation(lab) == generation


def test_a_daemon_that_is_killed_leaves_the_tunnel_and_its_session(lab: Lab) -> None:
    generation, ends = _generation(lab), _link(lab, "b")["opens"]
    faults.kill(lab, "b", "daemon")
    lab.start_daemon(lab.places["b"])
    lab.wait_protected()
    _wait_agreed(lab)
    assert _link(lab, "b")["opens"] == ends
    assert _generation(lab) == generation


def test_a_tunnel_that_ends_is_made_again_and_the_pair_too(lab: Lab) -> None:
    place = lab.places["b"]
    device = settings.tunnel_ends(load_config(place.config)).device
    before = _link(lab, "b")["opens"]
    namespaces.run_in(place.namespace, lambda: netdev.remove(device))
    lab.wait(lambda: _link(lab, "b").get("opens") not in (None, before), "none is made", 60)
    assert "somebody has removed the link's tunnel" in place.log.read_text()
    _wait_agreed(lab)
    lab.wait_protected()


def test_a_host_that_dies_is_taken_over_from(lab: Lab) -> None:
    async def work() -> None:
        client = Client(lab.namespace_of("client"), lab.guest_address)
        entries = Entries(Lines(await served(client, LEDGER)))
        await entries.append(5)
        serving = "a" if (lab.ask("a") or {})["role"] == "primary" else "b"
        await asyncio.to_thread(faults.kill, lab, serving, "host")
        await entries.append(5)
        await asyncio.to_thread(lab.heal)
        await asyncio.to_thread(lab.wait_protected)
        await entries.append(5)

    asyncio.run(work())
    _wait_agreed(lab)


def test_another_key_on_one_host_is_said_on_both(lab: Lab) -> None:
    """The daemon that starts with it says so; the tunnel lets nothing through that it sends."""
    place = lab.places["b"]
    text = place.config.read_text()
    other = place.directory / "another-key"
    other.touch(mode=0o600)
    other.write_text("another key than the pair's\n")
    key = load_config(place.config).peer.key_file
    place.config.write_text(text.replace(f'"{key}"', f'"{other}"'))
    faults.kill(lab, "b", "daemon")
    lab.start_daemon(place)
    for host in "ab":
        log = lab.places[host].log
        lab.wait(lambda log=log: "wrong key" in log.read_text(), "no word of it", 60)
