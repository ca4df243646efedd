# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon does about the link's seal, with a toy of the kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from colo_ebpf.cli import text
from colo_ebpf.control.link_seal import Between, LinkSeal
from colo_ebpf.control.peer.key_ring import KeyRing
from colo_ebpf.control.peer.link_keys import LinkKeys, Offer
from colo_ebpf.control.peer.state import PeerState
from colo_ebpf.datapath.net import xfrm
from colo_ebpf.datapath.net.ipsec import LinkEnds
from colo_ebpf.errors import AttachError

S = 1_000_000_000
ENDS = LinkEnds("web", "10.0.0.1", "10.0.0.2", 20_001, (20_002, 20_003))
RING = KeyRing(b"the pair's key....")
BETWEEN = Between(ENDS, "a", "b", RING)
(KEY,) = RING.names


@dataclass
class _Kernel:
    """What `xfrm` does."""

    found: dict[bool, set[int]] = field(default_factory=lambda: {True: set(), False: set()})
    counts: dict[str, int] = field(default_factory=dict)
    error: str = ""

    def add_state(self, _ends: LinkEnds, *, inbound: bool, spi: int, key: bytes) -> None:
        assert len(key) == 36
        if self.error:
            raise AttachError(self.error)
        self.found[inbound].add(spi)

    def keep_states(self, _ends: LinkEnds, *, inbound: bool, spi: int) -> int:
        self.found[inbound] &= {spi}
        return 0

    def states(self, _ends: LinkEnds, *, inbound: bool) -> set[int]:
        return set(self.found[inbound])

    def refused(self) -> dict[str, int]:
        return dict(self.counts)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> _Kernel:
    toy = _Kernel()
    for name in ("add_state", "keep_states", "states", "refused"):
        monkeypatch.setattr(xfrm, name, getattr(toy, name))
    return toy


class _Core:
    def __init__(self) -> None:
        self.link = LinkKeys("mine", KEY)
        self.peer = SimpleNamespace(state=None)
        self.published = SimpleNamespace(vni=1)

    def agreed_on(self, link: LinkKeys) -> None:
        self.link = link

    def hears(self, **more: Any) -> None:
        self.peer.state = PeerState(vm="web", host="b", boot="theirs", echo="mine", **more)


async def _look(seal: LinkSeal, now_ns: int) -> None:
    while due := seal.due(now_ns):
        await seal.do(due, now_ns)


async def test_both_ways_are_in_the_kernel_and_told(kernel: _Kernel) -> None:
    core: Any = _Core()
    seal = LinkSeal(BETWEEN, core)
    await _look(seal, 0)
    assert not core.link.offer
    core.hears(link_offer=Offer(0x777, bytes(16), "mine", KEY))
    await _look(seal, S)
    assert kernel.found[False] == {0x777}
    assert kernel.found[True] == {core.link.offer.spi}
    assert "no key is agreed" in text._link(seal.status(S))
    core.hears(link_offer=Offer(0x777, bytes(16), "mine", KEY), seals_with=core.link.offer.spi)
    await _look(seal, 2 * S)
    assert text._link(seal.status(62 * S)) == "sealed by IPsec, its key is 0:01:01 old"


async def test_what_the_kernel_refuses_is_tried_again_and_told_once(
    kernel: _Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    core: Any = _Core()
    seal, kernel.error = LinkSeal(BETWEEN, core), "IPsec: add the state 0x1: no memory"
    core.hears()
    for second in range(3):
        await _look(seal, second * S)
        assert not seal.due(second * S), "it rests"
    assert caplog.messages == ["the link's keys: IPsec: add the state 0x1: no memory"]
    kernel.error = ""
    await _look(seal, 5 * S)
    assert core.link.offer


async def test_a_key_that_is_not_here_is_a_sentence(
    kernel: _Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    core: Any = _Core()
    core.hears(link_offer=Offer(0x777, bytes(16), "mine", "0123456789abcdef"))
    await _look(LinkSeal(BETWEEN, core), 0)
    assert not kernel.found[False]
    assert caplog.messages == ["the link's keys: b seals with a key that a does not have"]


async def test_keys_that_were_removed_are_made_anew(
    kernel: _Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    core: Any = _Core()
    seal = LinkSeal(BETWEEN, core)
    core.hears(link_offer=Offer(0x777, bytes(16), "mine", KEY))
    await _look(seal, 0)
    first = core.link.offer
    kernel.found = {True: set(), False: set()}
    await _look(seal, 10 * S)
    assert core.link.offer != first
    assert core.link.seals_with == 0, "its peer has to offer another key"
    assert not kernel.found[False]
    assert any("somebody has removed" in one for one in caplog.messages)


async def test_what_was_refused_is_told_by_what_was_wrong_with_it(
    kernel: _Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    core: Any = _Core()
    kernel.counts = {"repeated": 100}
    seal = LinkSeal(BETWEEN, core)
    await _look(seal, 0)
    assert not caplog.messages, "that was before"
    kernel.counts = {"repeated": 107, "not sealed": 3}
    await _look(seal, 10 * S)
    await _look(seal, 20 * S)
    told = "the kernel has refused packets of IPsec: 7 repeated, 3 not sealed"
    assert caplog.messages == [told]
    assert seal.status(0)["refused"] == {"repeated": 7, "not sealed": 3}
