# SPDX-License-Identifier: GPL-2.0-only
"""The wires of a lab: namespaces, bridges, veth pairs; cutting and healing them."""

from __future__ import annotations

from colo_ebpf.datapath.net import bridges, namespaces, netdev
from colo_ebpf.lab.topology import (
    ARBITER,
    ARBITER_ADDRESS,
    ARBITER_BRIDGE,
    BRIDGE,
    CLIENT_ADDRESS,
    CLIENT_BRIDGE,
    FAMILIES,
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


def build(lab: str, family: str = FAMILIES[0]) -> None:
    """Make everything; nothing of the name may exist."""
    client = client_namespace(lab)
    a, b = (Place(lab, host, family=family) for host in HOSTS)
    for namespace in (client, a.namespace, b.namespace):
        namespaces.create(namespace)
    namespaces.run_in(client, _client_side)
    for place in (a, b):
        namespaces.run_in(place.namespace, lambda: bridges.create(BRIDGE))
        port = f"{place.host}0"
        namespaces.create_veth(UPLINK, port, place.namespace, client, GUEST_MTU)
        namespaces.run_in(place.namespace, lambda: bridges.join(UPLINK, BRIDGE))
        namespaces.run_in(client, lambda port=port: bridges.join(port, CLIENT_BRIDGE))  # type: ignore[misc]
    namespaces.create_veth(LINK, LINK, a.namespace, b.namespace, LINK_MTU)
    namespaces.create_veth(MANAGEMENT, MANAGEMENT, a.namespace, b.namespace, GUEST_MTU)
    for place in (a, b):
        namespaces.run_in(place.namespace, lambda place=place: _addresses(place))  # type: ignore[misc]


def add_arbiter(lab: str) -> None:
    """The arbiter's namespace and a wire of its own to each host."""
    namespace = arbiter_namespace(lab)
    namespaces.create(namespace)
    namespaces.run_in(namespace, _arbiter_side)
    for place in (Place(lab, host) for host in HOSTS):
        port = f"{place.host}0"
        namespaces.create_veth(ARBITER, port, place.namespace, namespace, GUEST_MTU)
        namespaces.run_in(namespace, lambda port=port: bridges.join(port, ARBITER_BRIDGE))  # type: ignore[misc]
        address = place.arbiter_address
        namespaces.run_in(
            place.namespace,
            lambda address=address: netdev.add_address(ARBITER, address, PREFIX_LENGTH),  # type: ignore[misc]
        )


def _arbiter_side() -> None:
    bridges.create(ARBITER_BRIDGE)
    netdev.add_address(ARBITER_BRIDGE, ARBITER_ADDRESS, PREFIX_LENGTH)


def _client_side() -> None:
    bridges.create(CLIENT_BRIDGE)
    netdev.add_address(CLIENT_BRIDGE, CLIENT_ADDRESS, PREFIX_LENGTH)


def _addresses(place: Place) -> None:
    paths = {LINK: place.link_address, MANAGEMENT: place.management_address}
    for device, address in paths.items():
        netdev.keep_addresses_when_down(device)  # as those of a host whose cable is out
        netdev.add_address(device, address, place.prefix_length)


def remove(lab: str) -> None:
    """Remove the namespaces and with them every device."""
    hosts = [Place(lab, host).namespace for host in HOSTS]
    for namespace in (client_namespace(lab), arbiter_namespace(lab), *hosts):
        namespaces.remove(namespace)


def wires(place: Place) -> list[str]:
    """The devices that lead out of a host."""
    known = (UPLINK, LINK, MANAGEMENT, ARBITER)
    return namespaces.run_in(place.namespace, lambda: [d for d in known if netdev.exists(d)])


def cut(place: Place, *devices: str) -> None:
    """Take devices of a host down: nothing passes in either direction."""
    for device in devices:
        namespaces.run_in(place.namespace, lambda device=device: netdev.set_down(device))  # type: ignore[misc]


def restore(place: Place) -> None:
    """Bring the wires of a host up again."""
    for device in wires(place):
        namespaces.run_in(place.namespace, lambda device=device: netdev.set_up(device))  # type: ignore[misc]
