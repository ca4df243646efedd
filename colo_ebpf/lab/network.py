# SPDX-License-Identifier: GPL-2.0-only
"""The wires of a lab: namespaces, bridges, veth pairs; cutting and healing them."""

from __future__ import annotations

from colo_ebpf.datapath import netdev
from colo_ebpf.lab.topology import (
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


def _client_side() -> None:
    netdev.create_bridge(CLIENT_BRIDGE)
    netdev.add_address(CLIENT_BRIDGE, CLIENT_ADDRESS, PREFIX_LENGTH)


def _addresses(place: Place) -> None:
    netdev.add_address(LINK, place.link_address, PREFIX_LENGTH)
    netdev.add_address(MANAGEMENT, place.management_address, PREFIX_LENGTH)


def remove(lab: str) -> None:
    """Remove the namespaces and with them every device."""
    for namespace in (client_namespace(lab), *(Place(lab, host).namespace for host in HOSTS)):
        netdev.remove_namespace(namespace)


def cut(place: Place, *devices: str) -> None:
    """Take devices of a host down: nothing passes in either direction."""
    for device in devices:
        netdev.in_namespace(place.namespace, lambda device=device: netdev.set_down(device))  # type: ignore[misc]


def restore(place: Place) -> None:
    """Bring the wires of a host up again."""

    def up() -> None:
        for device in (UPLINK, LINK, MANAGEMENT):
            netdev.set_up(device)

    netdev.in_namespace(place.namespace, up)
