# SPDX-License-Identifier: GPL-2.0-only
"""A tunnel of WireGuard between the hosts that carries one VM's link: its names, addresses and
sizes, and the words in which a program is told of it (wireguard.com/xplatform). Pure.

Each host has two addresses in the tunnel. They follow from the VM's name and the host's address
outside, so each host knows all four.

- Memory and disk of the VM go between unique local addresses (RFC 4193).
- Frames go between link-local ones. What is sent to such an address has to come by the device that
  has it, so nobody reaches it but through the tunnel.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import ipaddress
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from colo_ebpf import addresses
from colo_ebpf.datapath.net import tunnel
from colo_ebpf.datapath.net.ipsec import FramesPort

KEY_BYTES = 32
KEEPALIVE_S = 25  # a session is renewed while nothing else is said, too
# Of what goes through: IPv4 20 or IPv6 40, UDP 8, header 16, tag 16. Padding stays within the MTU.
_OVERHEAD_BYTES = {socket.AF_INET: 60, socket.AF_INET6: 80}
FRAMES_OVERHEAD_BYTES = tunnel.overhead_bytes("::")
_DIGEST_BYTES = 16
_UNIQUE_LOCAL = b"\xfd"
_LINK_LOCAL = bytes.fromhex("fe80000000000000")


def overhead_bytes(address: str) -> int:
    """What the tunnel adds to a packet. `address`: of the host, outside."""
    return _OVERHEAD_BYTES[addresses.family(address)]


def needed_mtu(guest_mtu: int, address: str) -> int:
    """The least MTU of the device below: frames of such a guest pass whole."""
    return guest_mtu + FRAMES_OVERHEAD_BYTES + overhead_bytes(address)


@dataclass(frozen=True, slots=True)
class TunnelEnds:
    """`local`, `peer`: the hosts' addresses of the link, outside the tunnel.

    `port`: UDP, of WireGuard on both hosts. `frames_port`: UDP, inside.
    """

    vm: str
    local: str
    peer: str
    port: int
    frames_port: int

    def _digest(self, address: str) -> bytes:
        text = f"{self.vm}\0{address}".encode()
        return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()

    @property
    def device(self) -> str:
        """Its name on this host."""
        return f"wg-{self._digest(self.local)[:4].hex()}"

    def inside(self, address: str) -> str:
        """Where the host with this address is found, by what QEMU sends."""
        return str(ipaddress.IPv6Address(_UNIQUE_LOCAL + self._digest(address)[1:]))

    def frames(self, address: str) -> str:
        """The same for frames."""
        return str(ipaddress.IPv6Address(_LINK_LOCAL + self._digest(address)[8:]))

    @property
    def frames_only(self) -> FramesPort:
        """Frames come to this host's address of the tunnel, from the peer's, or not at all."""
        return FramesPort(self.frames(self.local), self.frames(self.peer), self.frames_port)

    @property
    def allowed(self) -> tuple[str, ...]:
        """What the peer may send from, and is sent."""
        return f"{self.inside(self.peer)}/128", f"{self.frames(self.peer)}/128"


@dataclass(frozen=True, slots=True)
class Contact:
    """The peer, as a device has it."""

    public_key: bytes
    preshared_key: bytes = field(repr=False)
    endpoint: tuple[str, int] | None = None
    handshake_s: int = 0  # when the last one was done, since 1970; 0: never


@dataclass(frozen=True, slots=True)
class Device:
    """What a device is set to."""

    public_key: bytes
    port: int
    contacts: tuple[Contact, ...] = ()


def as_text(key: bytes) -> str:
    """As people and `wg show` have it."""
    return base64.b64encode(key).decode()


def from_text(text: bytes | str) -> bytes:
    """The other way."""
    return base64.b64decode(text)


# -- the words of a program -----------------------------------------------------------------

GET = "get=1\n\n"


def set_identity(private_key: bytes, port: int) -> str:
    """Who it is from now on, and where it listens."""
    return f"set=1\nprivate_key={private_key.hex()}\nlisten_port={port}\n\n"


def set_contact(contact: Contact, allowed: tuple[str, ...]) -> str:
    """Add the peer, or change what is said of it: a session goes on."""
    lines = [
        "set=1",
        f"public_key={contact.public_key.hex()}",
        f"preshared_key={contact.preshared_key.hex()}",
        *([f"endpoint={_endpoint(*contact.endpoint)}"] if contact.endpoint else []),
        f"persistent_keepalive_interval={KEEPALIVE_S}",
        "replace_allowed_ips=true",
        *(f"allowed_ip={one}" for one in allowed),
    ]
    return "\n".join(lines) + "\n\n"


def drop_contact(public_key: bytes) -> str:
    """It is heard no more."""
    return f"set=1\npublic_key={public_key.hex()}\nremove=true\n\n"


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _parsed_endpoint(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)


def failure(answer: str) -> str:
    """Why a program has not done what it was told; "": it has."""
    number = next((v for key, v in _pairs(answer) if key == "errno"), "")
    if number == "0":
        return ""
    try:
        code = abs(int(number))
    except ValueError:
        return "it has ended"
    return os.strerror(code) if code in errno.errorcode else f"error {number}"


def parse(answer: str) -> Device:
    """What `GET` is answered with. ValueError if it is no such thing."""
    device: dict[str, str] = {}
    contacts: list[dict[str, str]] = []
    for key, value in _pairs(answer):
        if key == "public_key":
            contacts.append({})
        (contacts[-1] if contacts else device)[key] = value
    private = bytes.fromhex(device.get("private_key", ""))
    return Device(
        public_key_of(private) if any(private) else b"",
        int(device.get("listen_port", 0)),
        tuple(_contact(one) for one in contacts),
    )


def _contact(words: dict[str, str]) -> Contact:
    endpoint = words.get("endpoint")
    return Contact(
        bytes.fromhex(words["public_key"]),
        bytes.fromhex(words.get("preshared_key", "")),
        _parsed_endpoint(endpoint) if endpoint else None,
        int(words.get("last_handshake_time_sec", 0)),
    )


def _pairs(answer: str) -> Iterator[tuple[str, str]]:
    for line in answer.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            yield key, value


def public_key_of(private_key: bytes) -> bytes:
    """What the peer is told."""
    key = X25519PrivateKey.from_private_bytes(private_key).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)
