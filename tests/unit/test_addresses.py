# SPDX-License-Identifier: GPL-2.0-only
"""What may stand for an end of a path between the hosts, and how it is written down."""

from __future__ import annotations

import socket
import struct

import pytest

from colo_ebpf import addresses
from colo_ebpf.datapath.net import tunnel


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "fd00:0:0:1::2"])
def test_an_address_of_a_host_is_taken(text: str) -> None:
    assert addresses.host_address(text).version == (6 if ":" in text else 4)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("peer.example", "not an IPv4 or IPv6 address"),
        ("192.0.2.1/24", "not an IPv4 or IPv6 address"),
        ("[2001:db8::1]", "not an IPv4 or IPv6 address"),
        ("fe80::1", "link-local .* fd00::/8"),
        ("fe80::1%eth1", "link-local .* fd00::/8"),
        ("2001:db8::1%eth1", "has a scope"),
        ("::ffff:192.0.2.1", "write the IPv4 address 192.0.2.1"),
        ("ff02::1", "not the address of a host"),
        ("224.0.0.1", "not the address of a host"),
        ("::", "not the address of a host"),
        ("0.0.0.0", "not the address of a host"),
    ],
)
def test_what_is_none_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        addresses.host_address(text)


def test_a_port_stands_apart_from_the_address() -> None:
    assert addresses.with_port("192.0.2.1", 80) == "192.0.2.1:80"
    assert addresses.with_port("2001:db8::1", 80) == "[2001:db8::1]:80"


def test_a_socket_is_of_the_addresss_family() -> None:
    assert addresses.family("192.0.2.1") is socket.AF_INET
    assert addresses.family("2001:db8::1") is socket.AF_INET6


def test_a_tunnel_of_ipv6_has_four_words_of_address_and_more_of_a_header() -> None:
    assert tunnel.words("192.0.2.1") == (0xC0000201, 0, 0, 0)
    assert struct.pack("=4I", *tunnel.words("2001:db8::1")) == socket.inet_pton(
        socket.AF_INET6, "2001:db8::1"
    )
    assert [tunnel.overhead_bytes(one) for one in ("192.0.2.1", "2001:db8::1")] == [50, 70]
    assert [tunnel.flags(one) for one in ("192.0.2.1", "2001:db8::1")] == [0, 1]
