# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon does about the link's tunnel, with a toy of the device."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from colo_ebpf.cli import text
from colo_ebpf.control import link_tunnel
from colo_ebpf.control.link_tunnel import LinkTunnel, Through
from colo_ebpf.control.peer.key_ring import KeyRing
from colo_ebpf.control.peer.link_keys import LinkKeys
from colo_ebpf.control.peer.state import PeerState
from colo_ebpf.control.peer.tunnel_keys import preshared_key
from colo_ebpf.datapath.net import netdev, wgdevice, xfrm
from colo_ebpf.datapath.net.ipsec import FramesPort
from colo_ebpf.datapath.net.wireguard import Contact, Device, TunnelEnds
from colo_ebpf.errors import AttachError, ControlError

S = 1_000_000_000
ENDS = TunnelEnds("web", "10.0.0.1", "10.0.0.2", 28_001, 20_001)
THROUGH = Through(ENDS, "eth1", 1500)
RING = KeyRing(b"the pair's key....", b"the following key.")
KEY, FOLLOWING = RING.names
OURS, THEIRS, OTHER = b"a" * 32, b"b" * 32, b"c" * 32


@dataclass
class _Host:
    """What `wgdevice` and `xfrm` do."""

    public_key: bytes = OURS
    mtu: int = 1630
    carried: int = 0
    contacts: dict[bytes, Contact] = field(default_factory=dict)
    policies: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    error: str = ""

    def set_up(self, ends: TunnelEnds, mtu: int) -> bytes:
        assert ends == ENDS
        if self.error:
            raise AttachError(self.error)
        self.carried = mtu
        return self.public_key

    def meet(self, _ends: TunnelEnds, contact: Contact) -> None:
        if self.error:
            raise AttachError(self.error)
        self.contacts = {contact.public_key: contact}

    def read(self, _ends: TunnelEnds) -> Device:
        return Device(self.public_key, ENDS.port, tuple(self.contacts.values()))

    def require(self, _port: FramesPort) -> None:
        self.policies += 1

    def lacking(self, _port: FramesPort) -> set[str]:
        return set() if self.policies else {"one"}

    def refused(self) -> dict[str, int]:
        return dict(self.counts)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> _Host:
    toy = _Host()
    for name in ("set_up", "meet", "read"):
        monkeypatch.setattr(wgdevice, name, getattr(toy, name))
    monkeypatch.setattr(wgdevice, "maker_of", lambda _: "wireguard-go")
    for name in ("require", "lacking", "refused"):
        monkeypatch.setattr(xfrm, name, getattr(toy, name))
    monkeypatch.setattr(netdev, "mtu_of", lambda _: toy.mtu)
    return toy


class _Core:
    def __init__(self) -> None:
        self.link = LinkKeys("mine", KEY)
        self.peer = SimpleNamespace(state=None)

    def agreed_on(self, link: LinkKeys) -> None:
        self.link = link

    def hears(self, tunnel: bytes) -> None:
        self.peer.state = PeerState(vm="web", host="b", boot="theirs", echo="mine", tunnel=tunnel)


def _tunnel() -> tuple[LinkTunnel, Any]:
    core: Any = _Core()
    return LinkTunnel(THROUGH, "b", RING, core), core


async def _look(tunnel: LinkTunnel, now_ns: int) -> None:
    while due := tunnel.due(now_ns):
        await tunnel.do(due, now_ns)


async def test_the_peer_is_told_and_met_with_a_key_of_the_pairs(host: _Host) -> None:
    tunnel, core = _tunnel()
    await _look(tunnel, 0)
    assert core.link.tunnel == OURS, "the peer is told"
    assert not host.contacts, "nobody was heard"
    assert host.carried == 1570
    assert host.policies == 1
    core.hears(THEIRS)
    await _look(tunnel, S)
    (contact,) = host.contacts.values()
    assert contact.public_key == THEIRS
    assert contact.preshared_key == preshared_key(RING.current, THEIRS, OURS)
    assert contact.endpoint == ("10.0.0.2", 28_001)
    assert tunnel.due(S) is False
    await _look(tunnel, 10 * S)
    assert host.policies == 1, "what is there is left alone"


async def test_the_pairs_key_changes_what_the_next_session_asks_for(host: _Host) -> None:
    tunnel, core = _tunnel()
    core.hears(THEIRS)
    await _look(tunnel, 0)
    core.link = replace(core.link, key=FOLLOWING)
    await _look(tunnel, 0)
    assert RING.following is not None
    wanted = preshared_key(RING.following, THEIRS, OURS)
    assert host.contacts[THEIRS].preshared_key == wanted
    tunnel.take(KeyRing(RING.following))
    core.link = replace(core.link, key=KEY)
    await _look(tunnel, 0)
    assert host.contacts[THEIRS].preshared_key == wanted, "a key that is not there changes nothing"


async def test_another_end_of_the_peers_takes_the_place_of_the_first(host: _Host) -> None:
    tunnel, core = _tunnel()
    core.hears(THEIRS)
    await _look(tunnel, 0)
    core.hears(OTHER)
    await _look(tunnel, 0)
    assert set(host.contacts) == {OTHER}


async def test_a_tunnel_that_somebody_removed_is_made_and_told_again(
    host: _Host, caplog: pytest.LogCaptureFixture
) -> None:
    tunnel, core = _tunnel()
    core.hears(THEIRS)
    await _look(tunnel, 0)
    host.public_key, host.contacts = OTHER, {}
    tunnel.look_soon()
    await _look(tunnel, S)
    assert core.link.tunnel == OTHER
    assert host.contacts[THEIRS].preshared_key == preshared_key(RING.current, THEIRS, OTHER)
    assert "somebody has removed the link's tunnel: a new one is made" in caplog.messages


@pytest.mark.parametrize("endpoint", [("192.0.2.66", 28_001), ("10.0.0.2", 4), None])
async def test_a_peer_that_speaks_from_elsewhere_is_still_sought_where_it_is(
    endpoint: tuple[str, int] | None, host: _Host
) -> None:
    """Who repeats its datagrams from his own address, before they come, draws ours to himself."""
    tunnel, core = _tunnel()
    core.hears(THEIRS)
    await _look(tunnel, 0)
    host.contacts[THEIRS] = replace(host.contacts[THEIRS], endpoint=endpoint)
    await _look(tunnel, 10 * S)
    assert host.contacts[THEIRS].endpoint == ("10.0.0.2", 28_001)


async def test_what_fails_is_said_once_and_tried_again(
    host: _Host, caplog: pytest.LogCaptureFixture
) -> None:
    tunnel, core = _tunnel()
    core.hears(THEIRS)
    host.error = "WireGuard: start wireguard-go: No such file or directory"
    for second in range(3):
        await _look(tunnel, second * S)
    told = f"the link's tunnel: {host.error}"
    assert caplog.messages == [told]
    host.error = ""
    await _look(tunnel, 3 * S)
    assert set(host.contacts) == {THEIRS}


async def test_what_the_kernel_refused_is_told_and_counted(
    host: _Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.counts = {"not from the peer": 5}
    tunnel, _core = _tunnel()
    await _look(tunnel, 0)
    assert not caplog.messages, "that was before"
    host.counts = {"not from the peer": 12}
    await _look(tunnel, 10 * S)
    assert caplog.messages == ["the kernel has refused packets: 7 not from the peer"]
    assert tunnel.status(0)["refused"] == {"not from the peer": 7}


async def test_status_says_who_seals_and_how_old_the_session_is(
    host: _Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_000 * S)
    tunnel, core = _tunnel()
    core.hears(THEIRS)
    await _look(tunnel, 0)
    assert not tunnel.status(0)["agreed"]
    assert text._link(tunnel.status(0)) == (
        "to be sealed by WireGuard, no key is agreed with the peer"
    )
    host.contacts[THEIRS] = replace(host.contacts[THEIRS], handshake_s=938)
    await _look(tunnel, 10 * S)
    status = tunnel.status(0)
    assert status["agreed"]
    assert (status["security"], status["by"]) == ("wireguard", "wireguard-go")
    said = "sealed by WireGuard (wireguard-go), its key is 0:01:02 old"
    assert text._link(status) == said
    host.contacts[THEIRS] = replace(host.contacts[THEIRS], handshake_s=800)
    await _look(tunnel, 20 * S)
    assert not tunnel.status(0)["agreed"]


def test_a_link_that_is_too_small_ends_the_start_with_a_sentence(host: _Host) -> None:
    host.mtu = 1629
    with pytest.raises(ControlError, match="set it to 1630 or more"):
        link_tunnel.begin(THROUGH)
    host.mtu = 1630
    link_tunnel.begin(THROUGH)
