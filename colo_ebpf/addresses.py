# SPDX-License-Identifier: GPL-2.0-only
"""Addresses of the two hosts on the paths between them, IPv4 or IPv6. Pure."""

from __future__ import annotations

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def host_address(text: str) -> Address:
    """One end of a path. ValueError says why it cannot be one, as the end of a sentence."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError as e:
        raise ValueError("is not an IPv4 or IPv6 address") from e
    if isinstance(address, ipaddress.IPv6Address):
        _check_ipv6(address)
    if address.is_multicast or address.is_unspecified:
        raise ValueError("is not the address of a host")
    return address


def _check_ipv6(address: ipaddress.IPv6Address) -> None:
    """A tunnel has no place for a scope: it could not tell which device is meant."""
    if address.is_link_local:
        raise ValueError(
            "is a link-local address, which a tunnel cannot use: give both hosts an address of "
            "their own on this path, of fd00::/8 for example"
        )
    if address.scope_id:
        raise ValueError("has a scope, which goes with link-local addresses only: leave it out")
    if address.ipv4_mapped:
        raise ValueError(f"is IPv4 in IPv6: write the IPv4 address {address.ipv4_mapped}")


def family(text: str) -> socket.AddressFamily:
    """Of a socket for it."""
    return socket.AF_INET6 if ":" in text else socket.AF_INET


def with_port(text: str, port: int) -> str:
    """As URIs have it, and messages: an IPv6 address in brackets."""
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
