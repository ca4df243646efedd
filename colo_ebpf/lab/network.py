# SPDX-License-Identifier: GPL-2.0-only
"""The wires of a lab: namespaces, bridges, veth pairs; cutting and healing them."""

from __future__ import annotations

from colo_ebpf.datapath import netdev
from colo_ebpf.lab.topology import (
    ARBITER,
    ARBITER_ADDRESS,
    ARBITER_BRIDGE,
    BRIDGE,
    CLIENT_ADDRESS,
    CLIENT_BRIDGE,
    GUEST_MTU,
    HOSTS,
    LINK,
    LINK_MTU,
    MANAGEMENT,
    PREFIX_LENGTH,
    UPLINK,
    Place,
    arbiter_namespace,
    client_namespace,
)


def build(lab: str) -> None:
    """Make everything; nothing of the name may exist."""
    client = client_namespace(lab)
    a, b = (Place(lab, host) for host in HOSTS)
    for namespace in (client, a.namespace, b.namespace):
        netdev.create_namespace(namespace)
    netdev.in_namespace(client, _client_side)
    for place in (a, b):
        netdev.in_namespace(place.namespace, lambda: netdev.create_bridge(BRIDGE))
        port = f"{place.host}0"
        netdev.create_veth(UPLINK, port, place.namespace, client, GUEST_MTU)
        netdev.in_namespace(place.namespace, lambda: netdev.join_bridge(UPLINK, BRIDGE))
        netdev.in_namespace(client, lambda port=port: netdev.join_bridge(port, CLIENT_BRIDGE))  # type: ignore[misc]
    netdev.create_veth(LINK, LINK, a.namespace, b.namespace, LINK_MTU)
    netdev.create_veth(MANAGEMENT, MANAGEMENT, a.namespace, b.namespace, GUEST_MTU)
    for place in (a, b):
        netdev.in_namespace(place.namespace, lambda place=place: _addresses(place))  # type: ignore[misc]


def add_arbiter(lab: str) -> None:
    """The arbiter's namespace and a wire of its own to each host."""
    namespace = arbiter_namespace(lab)
    netdev.create_namespace(namespace)
    netdev.in_namespace(namespace, _arbiter_side)
    for place in (Place(lab, host) for host in HOSTS):
        port = f"{place.host}0"
        netdev.create_veth(ARBITER, port, place.namespace, namespace, GUEST_MTU)
        netdev.in_namespace(namespace, lambda port=port: netdev.join_bridge(port, ARBITER_BRIDGE))  # type: ignore[misc]
        address = place.arbiter_address
        netdev.in_namespace(
            place.namespace,
            lambda address=address: netdev.add_address(ARBITER, address, PREFIX_LENGTH),  # type: ignore[misc]
        )


def _arbiter_side() -> None:
    netdev.create_bridge(ARBITER_BRIDGE)
    netdev.add_address(ARBITER_BRIDGE, ARBITER_ADDRESS, PREFIX_LENGTH)


def _client_side() -> None:
    netdev.create_bridge(CLIENT_BRIDGE)
    netdev.add_address(CLIENT_BRIDGE, CLIENT_ADDRESS, PREFIX_LENGTH)


def _addresses(place: Place) -> None:
    netdev.add_address(LINK, place.link_address, PREFIX_LENGTH)
    netdev.add_address(MANAGEMENT, place.management_address, PREFIX_LENGTH)


def remove(lab: str) -> None:
    """Remove the namespaces and with them every device."""
    hosts = [Place(lab, host).namespace for host in HOSTS]
    for namespace in (client_namespace(lab), arbiter_namespace(lab), *hosts):
        netdev.remove_namespace(namespace)


def wires(place: Place) -> list[str]:
    """The devices that lead out of a host."""
    known = (UPLINK, LINK, MANAGEMENT, ARBITER)
    return netdev.in_namespace(place.namespace, lambda: [d for d in known if netdev.exists(d)])


def cut(place: Place, *devices: str) -> None:
    """Take devices of a host down: nothing passes in either direction."""
    for device in devices:
        netdev.in_namespace(place.namespace, lambda device=device: netdev.set_down(device))  # type: ignore[misc]


def restore(place: Place) -> None:
    """Bring the wires of a host up again."""
    for device in wires(place):
        netdev.in_namespace(place.namespace, lambda device=device: netdev.set_up(device))  # type: ignore[misc]
