# SPDX-License-Identifier: GPL-2.0-only
"""Devices of WireGuard in the calling thread's network namespace: the kernel's, by netlink, or
wireguard-go's, by its socket. What is said of either is in `wireguard`.

All functions block; use a thread. They raise AttachError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from pyroute2 import IPRoute, WireGuard
from pyroute2.netlink.exceptions import NetlinkError

from colo_ebpf.datapath.net import netdev, wireguard
from colo_ebpf.datapath.net.wireguard import Contact, Device, TunnelEnds
from colo_ebpf.errors import AttachError

PROGRAM = "wireguard-go"
_SOCKETS = Path("/var/run/wireguard")
_KIND = "wireguard"
# Frames wait for the program; the VMs that compute meanwhile are those that the frames belong to.
_BEFORE_VMS = ("nice", "-n", "-10")
_PROGRAM_S = 10.0  # it answers at once, or is as good as dead
_LAST_RESORT = 0xFFFF_FFF0  # metric of a route that counts when no other one is left
_PREFIX = 128
_QUEUE_PACKETS = 4000  # that may wait for the program; a device has 500 by itself


class _Maker(Protocol):
    """Who has the device."""

    name: str

    def make(self, ifname: str) -> None:
        """The device is there afterwards, without an identity."""

    def read(self, ifname: str) -> Device:
        """What it is set to."""

    def set_identity(self, ifname: str, private_key: bytes, port: int) -> None:
        """Who it is."""

    def set_contact(self, ifname: str, contact: Contact, allowed: tuple[str, ...]) -> None:
        """Add the peer, or change what is said of it: a session goes on."""

    def drop_contact(self, ifname: str, public_key: bytes) -> None:
        """It is heard no more."""


class _Kernel:
    name = "the kernel"

    def make(self, ifname: str) -> None:
        with IPRoute() as ipr, _told(f"make {ifname}"):
            ipr.link("add", ifname=ifname, kind=_KIND)

    def read(self, ifname: str) -> Device:
        with _told(f"look at {ifname}"), WireGuard() as wg:
            told = list(wg.info(ifname))
        contacts = [_contact(one) for m in told for one in m.get_attr("WGDEVICE_A_PEERS") or ()]
        public_key = told[0].get_attr("WGDEVICE_A_PUBLIC_KEY")
        port = int(told[0].get_attr("WGDEVICE_A_LISTEN_PORT") or 0)
        return Device(_key(public_key), port, tuple(contacts))

    def set_identity(self, ifname: str, private_key: bytes, port: int) -> None:
        self._set(ifname, private_key=wireguard.as_text(private_key), listen_port=port)

    def set_contact(self, ifname: str, contact: Contact, allowed: tuple[str, ...]) -> None:
        told: dict[str, Any] = {
            "public_key": wireguard.as_text(contact.public_key),
            "preshared_key": wireguard.as_text(contact.preshared_key),
            "persistent_keepalive": wireguard.KEEPALIVE_S,
            "replace_allowed_ips": True,
            "allowed_ips": list(allowed),
        }
        if contact.endpoint:
            told["endpoint_addr"], told["endpoint_port"] = contact.endpoint
        self._set(ifname, peer=told)

    def drop_contact(self, ifname: str, public_key: bytes) -> None:
        self._set(ifname, peer={"public_key": wireguard.as_text(public_key), "remove": True})

    @staticmethod
    def _set(ifname: str, **what: Any) -> None:
        with _told(f"set up {ifname}"), WireGuard() as wg:
            wg.set(ifname, **what)


def _key(text: bytes | str | None) -> bytes:
    return wireguard.from_text(text) if text else b""


def _contact(peer: Any) -> Contact:
    endpoint = peer.get_attr("WGPEER_A_ENDPOINT")
    handshake = peer.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME")
    return Contact(
        _key(peer.get_attr("WGPEER_A_PUBLIC_KEY")),
        _key(peer.get_attr("WGPEER_A_PRESHARED_KEY")),
        (endpoint["addr"], endpoint["port"]) if endpoint else None,
        int(handshake["tv_sec"]) if handshake else 0,
    )


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as e:
        why = os.strerror(e.code) if e.code in errno.errorcode else str(e)
        raise AttachError(f"WireGuard: {what}: {why}") from e
    except (OSError, subprocess.TimeoutExpired) as e:
        why = getattr(e, "strerror", None) or str(e)
        raise AttachError(f"WireGuard: {what}: {why}") from e


class _Program:
    name = PROGRAM

    def make(self, ifname: str) -> None:
        """It puts itself into the background as soon as it can be told things. It lives as long
        as the device does, whatever becomes of this process."""
        with _told(f"start {PROGRAM}"):
            program = shutil.which(PROGRAM)
            if program is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            done = subprocess.run(
                [*_BEFORE_VMS, program, ifname],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                start_new_session=True,
                env={**os.environ, "LOG_LEVEL": "silent"},
                cwd="/",
                timeout=_PROGRAM_S,
            )
        if done.returncode or not netdev.exists(ifname):
            raise AttachError(f"WireGuard: {PROGRAM} {ifname}: {_last_line(done.stderr)}")
        with IPRoute() as ipr, _told(f"make room in {ifname}"):
            ipr.link("set", index=netdev.index_of(ifname), txqlen=_QUEUE_PACKETS)

    def read(self, ifname: str) -> Device:
        try:
            return wireguard.parse(self._ask(ifname, wireguard.GET))
        except (ValueError, KeyError) as e:
            raise AttachError(f"WireGuard: {ifname}: what {PROGRAM} says is not known") from e

    def set_identity(self, ifname: str, private_key: bytes, port: int) -> None:
        self._ask(ifname, wireguard.set_identity(private_key, port))

    def set_contact(self, ifname: str, contact: Contact, allowed: tuple[str, ...]) -> None:
        self._ask(ifname, wireguard.set_contact(contact, allowed))

    def drop_contact(self, ifname: str, public_key: bytes) -> None:
        self._ask(ifname, wireguard.drop_contact(public_key))

    @staticmethod
    def _ask(ifname: str, words: str) -> str:
        answer = b""
        with _told(f"tell {PROGRAM} of {ifname}"), socket.socket(socket.AF_UNIX) as one:
            one.settimeout(_PROGRAM_S)
            one.connect(str(_SOCKETS / f"{ifname}.sock"))
            one.sendall(words.encode())
            while not answer.endswith(b"\n\n"):
                part = one.recv(1 << 16)
                if not part:
                    break
                answer += part
        text = answer.decode(errors="replace")
        if why := wireguard.failure(text):
            raise AttachError(f"WireGuard: tell {PROGRAM} of {ifname}: {why}")
        return text


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "it has ended"


_KERNEL, _PROGRAM = _Kernel(), _Program()


def kernel_lacks() -> str:
    """Why the kernel has no WireGuard; "": it has. A device is made, and removed."""
    name = f"wg-{secrets.token_hex(5)}"
    try:
        _KERNEL.make(name)
        netdev.remove(name)
    except AttachError as e:
        return str(e).rpartition(": ")[2]
    return ""


def program_is_there() -> bool:
    """wireguard-go is installed."""
    return shutil.which(PROGRAM) is not None


def maker_of(ifname: str) -> str:
    """Who has the device: `the kernel`, or the program."""
    return _maker(ifname).name


def _maker(ifname: str) -> _Maker:
    kind = netdev.kind_of(netdev.link_of(ifname))
    if kind not in (_KIND, "tun"):
        raise AttachError(f"{ifname}: it is there and no device of WireGuard: remove it")
    return _KERNEL if kind == _KIND else _PROGRAM


def read(ends: TunnelEnds) -> Device:
    """What the tunnel is set to."""
    return _maker(ends.device).read(ends.device)


def set_up(ends: TunnelEnds, mtu: int) -> bytes:
    """Whatever is lacking of the tunnel on this host; returns its public key.

    A device that is there keeps its key, and its session. `mtu`: of what goes through.
    """
    ifname = ends.device
    if not netdev.exists(ifname):
        (_PROGRAM if kernel_lacks() else _KERNEL).make(ifname)
    maker = _maker(ifname)
    device = maker.read(ifname)
    if not device.public_key or device.port != ends.port:
        maker.set_identity(ifname, secrets.token_bytes(wireguard.KEY_BYTES), ends.port)
        device = maker.read(ifname)
    _allow_ipv6(ifname)
    if netdev.mtu_of(ifname) != mtu or not netdev.is_up(ifname):
        netdev.set_up(ifname, mtu)
    for address in (ends.inside(ends.local), ends.frames(ends.local)):
        netdev.add_address(ifname, address, _PREFIX)
    _guide(ends)
    return device.public_key


def _allow_ipv6(ifname: str) -> None:
    """Where the host's administrator has switched it off for new devices."""
    path = Path(f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6")
    try:
        if path.read_text().strip() != "0":
            path.write_text("0\n")
    except OSError as e:
        raise AttachError(f"WireGuard: {ifname}: the kernel has no IPv6 ({e.strerror})") from e


def _guide(ends: TunnelEnds) -> None:
    """What is for the peer's addresses takes the tunnel. Without the tunnel it goes nowhere."""
    index = netdev.index_of(ends.device)
    with IPRoute() as ipr:
        for address in (ends.inside(ends.peer), ends.frames(ends.peer)):
            there = {"dst": f"{address}/{_PREFIX}", "family": socket.AF_INET6}
            _add_route(ipr, oif=index, **there)
            _add_route(ipr, type="prohibit", priority=_LAST_RESORT, **there)


def _add_route(ipr: Any, **route: Any) -> None:
    try:
        ipr.route("add", **route)
    except NetlinkError as e:
        if e.code != errno.EEXIST:
            why = os.strerror(e.code) if e.code in errno.errorcode else str(e)
            raise AttachError(f"WireGuard: route to {route['dst']}: {why}") from e


def meet(ends: TunnelEnds, contact: Contact) -> None:
    """This is the peer, and nobody else is. A session with it goes on."""
    ifname, maker = ends.device, _maker(ends.device)
    for known in maker.read(ifname).contacts:
        if known.public_key != contact.public_key:
            maker.drop_contact(ifname, known.public_key)
    maker.set_contact(ifname, contact, ends.allowed)


def remove(ends: TunnelEnds) -> None:
    """All that there is of the tunnel on this host."""
    netdev.remove(ends.device)
    with IPRoute() as ipr:
        for address in (ends.inside(ends.peer), ends.frames(ends.peer)):
            with contextlib.suppress(NetlinkError):
                ipr.route(
                    "del",
                    dst=f"{address}/{_PREFIX}",
                    family=socket.AF_INET6,
                    type="prohibit",
                    priority=_LAST_RESORT,
                )
