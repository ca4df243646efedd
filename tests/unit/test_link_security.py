# SPDX-License-Identifier: GPL-2.0-only
"""What seals the link, by what the configuration wants and the host has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from colo_ebpf.cli import doctor, text
from colo_ebpf.config.example import EXAMPLE
from colo_ebpf.config.reading import parse_config
from colo_ebpf.config.schema import Config
from colo_ebpf.control import link_security, link_tunnel, settings
from colo_ebpf.control.link_tunnel import Through
from colo_ebpf.datapath.net import wgdevice, xfrm
from colo_ebpf.datapath.net.ipsec import FramesPort, LinkEnds
from colo_ebpf.datapath.net.tunnel import Security
from colo_ebpf.errors import ConfigError, ControlError


def _kept_in(there: list[object]) -> Callable[[Through], None]:
    def remove(through: Through) -> None:
        there.append(through)

    return remove


class _Host:
    """What it can do, and what was done on it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.no_ipsec = self.no_kernel = self.no_policies = ""
        self.program = True
        self.removed: list[object] = []
        self.begun: list[Through] = []
        patch.setattr(xfrm, "why_not", lambda: self.no_ipsec)
        patch.setattr(xfrm, "why_no_policies", lambda: self.no_policies)
        patch.setattr(wgdevice, "kernel_lacks", lambda: self.no_kernel)
        patch.setattr(wgdevice, "program_is_there", lambda: self.program)
        patch.setattr(xfrm, "remove", self.removed.append)
        patch.setattr(Through, "remove", _kept_in(self.removed))
        patch.setattr(link_tunnel, "begin", self.begun.append)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> _Host:
    return _Host(monkeypatch)


def _config(security: str) -> Config:
    words = EXAMPLE.replace('security = "auto"', f'security = "{security}"')
    return parse_config(words, Path("test.toml"))


def _choose(security: str) -> Security:
    config = _config(security)
    ends, through = settings.link_ends(config), settings.through(config)
    return link_security.choose(config.link.security, ends, through)


def test_none_is_taken_and_warned_of(host: _Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert _choose("none") is Security.NONE
    assert caplog.messages == [link_security.UNSEALED]
    assert [type(one) for one in host.removed] == [LinkEnds, Through]
    assert text._link(link_security.unsealed()).startswith('NOT sealed: link.security is "none"')


@pytest.mark.parametrize("security", ["auto", "ipsec"])
def test_a_kernel_that_cannot_seal_ends_the_start_with_a_sentence(
    security: str, host: _Host
) -> None:
    host.no_ipsec, host.no_kernel = "Requested AEAD algorithm not found.", "Operation not supported"
    host.program = False
    with pytest.raises(ControlError) as told:
        _choose(security)
    for word in (f'"{security}"', "Requested AEAD", "esp4", 'link.security = "none"'):
        assert word in str(told.value)
    assert "wireguard" not in str(told.value)
    assert not host.removed
    host.no_ipsec = ""
    assert _choose(security) is Security.IPSEC
    assert [type(one) for one in host.removed] == [Through]


def test_auto_takes_the_kernels_wireguard_where_there_is_no_ipsec(host: _Host) -> None:
    assert _choose("auto") is Security.IPSEC
    host.no_ipsec = "no such algorithm"
    assert _choose("auto") is Security.WIREGUARD
    assert [one.ends.vm for one in host.begun] == ["web"]
    with pytest.raises(ControlError, match="IPsec"):
        _choose("ipsec")


def test_a_program_that_seals_has_to_be_asked_for(host: _Host) -> None:
    host.no_ipsec, host.no_kernel = "no such algorithm", "Operation not supported"
    with pytest.raises(ControlError, match='or write "wireguard", which wireguard-go does'):
        _choose("auto")
    assert _choose("wireguard") is Security.WIREGUARD
    assert [type(one) for one in host.removed] == [LinkEnds], "the tunnel stays"


def test_a_host_that_has_no_wireguard_says_what_would_help(host: _Host) -> None:
    host.no_kernel, host.program = "Operation not supported", False
    with pytest.raises(ControlError) as told:
        _choose("wireguard")
    for word in ("Operation not supported", "module wireguard", "install wireguard-go"):
        assert word in str(told.value)
    host.no_kernel, host.no_policies = "", "ip: Protocol not supported"
    with pytest.raises(ControlError, match="cannot close a port to others"):
        _choose("wireguard")
    host.no_ipsec = "no such algorithm"
    with pytest.raises(ControlError, match="IPsec"):
        _choose("auto")


def test_doctor_says_what_seals_and_what_the_link_has_to_carry(host: _Host) -> None:
    assert doctor._link_security("wireguard").startswith("WireGuard: the kernel seals")
    host.no_kernel = "Operation not supported"
    assert doctor._link_security("wireguard").startswith("WireGuard: wireguard-go seals")
    assert doctor._link_security("auto").startswith("IPsec")
    assert doctor._needed_mtu("wireguard", 1500, "192.0.2.1") == 1630
    assert doctor._needed_mtu("wireguard", 1500, "fd00::1") == 1650
    assert doctor._needed_mtu("none", 1500, "192.0.2.1") == 1550
    host.no_ipsec = "no such algorithm"
    assert doctor._needed_mtu("ipsec", 1500, "192.0.2.1") == 1584


def test_everything_but_the_heartbeats_uses_the_addresses_of_the_tunnel() -> None:
    config = _config("wireguard")
    through = settings.carried(config, Security.WIREGUARD)
    ends = settings.tunnel_ends(config)
    assert through.link.address == ends.inside("192.0.2.1")
    assert through.peer.link_address == ends.inside("192.0.2.2")
    assert through.link.underlay == ends.device
    assert settings.carried(config, Security.IPSEC) is config
    spec = settings.plane_spec(config, security=Security.WIREGUARD)
    assert spec.sealed == FramesPort(
        ends.frames("192.0.2.1"), ends.frames("192.0.2.2"), config.link.vxlan_port
    )
    assert spec.frames_address == ends.frames("192.0.2.1") != spec.link_address
    assert spec.peer_address == ends.inside("192.0.2.2")
    assert spec.tunnelled
    assert spec.link_mtu == 1570, "of the tunnel, over which frames go by IPv6"
    vm = settings.vm_spec(config, "tcg", Security.WIREGUARD)
    assert (vm.link_address, vm.link_device) == (ends.inside("192.0.2.1"), ends.device)
    assert vm.peer_address == ends.inside("192.0.2.2")
    assert settings.vm_spec(config, "tcg", Security.IPSEC).link_device == ""
    assert settings.who(config, Security.WIREGUARD).peer_link_address == ends.frames("192.0.2.2")
    plain = settings.plane_spec(config, security=Security.IPSEC)
    assert plain.frames_address == plain.link_address == "192.0.2.1"
    assert not plain.tunnelled


def test_both_hosts_have_to_choose_the_same() -> None:
    said = [link_security.compatibility(one)["link.security"] for one in Security]
    assert said == ["none", "ipsec", "wireguard"]


def test_another_word_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"link\.security"):
        _config("macsec")
