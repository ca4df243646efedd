# SPDX-License-Identifier: GPL-2.0-only
"""The words for `ip xfrm`, and how what it prints is read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from colo_ebpf.datapath.net import ipsec, tunnel
from colo_ebpf.datapath.net.ipsec import LinkEnds

HERE = LinkEnds("web", "10.0.0.1", "10.0.0.2", 20_001, (20_002, 20_003))
THERE = replace(HERE, local="10.0.0.2", peer="10.0.0.1")

# Of iproute2 6.1, with and without /etc/protocols.
POLICIES = """\
src 0.0.0.0/0 dst 10.0.0.1/32 proto tcp dport 20002 
\tdir in action block priority 2000 ptype main 
src 10.0.0.2/32 dst 10.0.0.1/32 proto 6 sport 20003 
\tdir in priority 1000 ptype main 
\ttmpl src 10.0.0.2 dst 10.0.0.1
\t\tproto esp reqid 7 mode transport
src 10.0.0.1/32 dst 10.0.0.2/32 proto 17 dport 20001 
\tdir out priority 1000 ptype main 
\ttmpl src 10.0.0.1 dst 10.0.0.2
\t\tproto esp reqid 7 mode transport
src 10.1.0.0/16 dst 10.2.0.0/16 
\tdir fwd priority 100 ptype main 
"""  # noqa: W291


def _states(ends: LinkEnds) -> str:
    return f"""\
src {ends.local} dst {ends.peer}
\tproto esp spi 0x00001002 reqid {ends.request_id} mode transport
\treplay-window 0 flag esn
\taead rfc4106(gcm(aes)) <<Keys hidden>> 128
\tanti-replay esn context:
\t seq-hi 0x0, seq 0x0, oseq-hi 0x0, oseq 0x0
src {ends.peer} dst {ends.local}
\tproto esp spi 0xfedcba98 reqid {ends.request_id} mode transport
src {ends.peer} dst {ends.local}
\tproto esp spi 0x00000abc reqid 1 mode tunnel
"""


def test_what_one_host_sends_is_what_the_other_expects() -> None:
    here, there = set(ipsec.sealed(HERE)), set(ipsec.sealed(THERE))
    assert len(here) == 10
    turned = {"in": "out", "out": "in"}
    assert {replace(one, direction=turned[one.direction]) for one in here} == there


def test_both_ends_of_a_connection_are_sealed() -> None:
    """The same packet is selected where it leaves and where it comes, whoever serves the port."""
    for port in HERE.tcp_ports:
        found = [
            (one.source_port, one.destination_port)
            for one in ipsec.sealed(HERE)
            if port in (one.source_port, one.destination_port)
        ]
        assert sorted(found) == [(0, port), (0, port), (port, 0), (port, 0)]


def test_ports_are_closed_to_all_others_behind_what_is_sealed() -> None:
    commands = list(ipsec.require(HERE))
    assert len(commands) == 13
    blocks = [one for one in commands if "action block" in one]
    assert len(blocks) == 3
    assert all("src 0.0.0.0/0 dst 10.0.0.1/32" in one for one in blocks)
    assert all("priority 2000" in one for one in blocks)
    assert all("priority 1000" in one for one in commands if one not in blocks)


def test_over_ipv6_too() -> None:
    ends = LinkEnds("web", "fd00::1", "fd00::2", 20_001, (20_002,))
    assert any("src ::/0 dst fd00::1/128" in one for one in ipsec.require(ends))


def test_policies_are_read_as_they_are_printed() -> None:
    found = ipsec.policies(POLICIES)
    assert len(found) == 3
    assert found < ipsec.selectors(HERE)


def test_states_of_this_vm_are_told_from_others() -> None:
    listed = _states(HERE)
    assert ipsec.spis(HERE, listed, inbound=False) == {0x1002}
    assert ipsec.spis(HERE, listed, inbound=True) == {0xFEDCBA98}
    other = replace(HERE, vm="db")
    assert other.request_id != HERE.request_id
    assert ipsec.spis(other, listed, inbound=True) == set()


def test_a_state_has_a_window_for_what_is_overtaken_and_long_numbers() -> None:
    command = ipsec.add_state(HERE, inbound=True, spi=0x1234, key=bytes(36))
    assert command.startswith("xfrm state add src 10.0.0.2 dst 10.0.0.1 proto esp spi 0x1234 ")
    assert "flag esn" in command
    assert command.endswith(f"0x{'00' * 36} 128")


@pytest.mark.parametrize(
    ("address", "plain", "sealed"), [("10.0.0.1", 1550, 1584), ("fd00::1", 1570, 1604)]
)
def test_a_seal_takes_room(address: str, plain: int, sealed: int) -> None:
    assert tunnel.needed_mtu(1500, address, sealed=False) == plain
    assert tunnel.needed_mtu(1500, address, sealed=True) == sealed
    for mtu in range(1400, 1500):
        more = tunnel.needed_mtu(mtu, address, sealed=True) - tunnel.needed_mtu(
            mtu, address, sealed=False
        )
        assert 34 <= more <= 37
