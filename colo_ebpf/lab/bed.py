# SPDX-License-Identifier: GPL-2.0-only
"""One host's data plane in a namespace of its own, with every wire in the caller's hands.

The VM is a file descriptor of the tap, the client a device behind the bridge, the peer's plane a
UDP socket that speaks VXLAN with a group tag. The programs and the set-up are the shipped ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from colo_ebpf import addresses
from colo_ebpf.config.schema import CACHE_DIR
from colo_ebpf.datapath.bpf import abi
from colo_ebpf.datapath.bpf.loader import Sizes, pin_directory
from colo_ebpf.datapath.bpf.syscalls import RawMap, obj_get
from colo_ebpf.datapath.net import bridges, namespaces, netdev, tuntap
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.datapath.spec import PlaneNic, PlaneSpec
from colo_ebpf.lab import mounts
from colo_ebpf.model import Mode, Pairing, Phase, VmRole

VNI = 77
PORT = 4789
UPLINK, CLIENT_END = "up0", "cl0"
LINK, PEER_END = "link0", "link1"
VNET_HEADER = bytes(10)
CACHE = Path(CACHE_DIR)
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_SO_RCVBUFFORCE = 33
_UDP_NO_CHECK6_RX = 102


@dataclass(frozen=True, slots=True)
class Ends:
    """Addresses of the host and of its peer on the link."""

    local: str
    peer: str
    prefix_length: int


IPV4 = Ends("198.51.100.1", "198.51.100.2", 24)
IPV6 = Ends("2001:db8::1", "2001:db8::2", 64)
LOCAL, PEER = IPV4.local, IPV4.peer


class LoadedPlane:
    """A data plane with devices and filters, in the namespace in hand."""

    def __init__(self, spec: PlaneSpec, role: VmRole, ends: Ends = IPV4) -> None:
        self.spec, self.ends = spec, ends
        self.plane = DataPlane.open(spec)
        self.pins = pin_directory(spec.bpffs, spec.vm)
        self._opened: dict[Path, RawMap] = {}

        async def attach() -> None:
            await self.plane.prepare()
            await self.plane.take_role(role)
            await self.plane.join_bridge()

        asyncio.run(attach())
        self.taps = [open_tap(nic.tap) for nic in spec.nics]

    def close(self) -> None:
        """Let go of it; the filters go with the devices."""
        for tap in self.taps:
            os.close(tap)
        for one in self._opened.values():
            os.close(one.fd)
        self.plane.close()

    def empty(self) -> None:
        """Unpaired, every map as after loading."""
        self.plane.set_mode(Mode.WITHHOLD)
        self.plane.set_pairing(None)
        self.plane.keep_offsets(0)
        empty_maps(self.pins, self._opened)

    def pair(self, epoch: int = 1, mode: Mode = Mode.PRIMARY) -> None:
        """Paired with the peer, in an open epoch. It has to be heard yet."""
        self.plane.set_pairing(Pairing(VNI, self.ends.peer))
        self.plane.set_turn(epoch, Phase.OPEN)
        self.plane.set_mode(mode)

    def count(self, program: str, verdict: str, reason: str) -> int:
        """Packets counted under one row."""
        for row in self.plane.counters():
            if (row.program, row.verdict, row.reason) == (program, verdict, reason):
                return row.packets
        return 0

    def map(self, name: str) -> RawMap:
        """One of the VM's pinned maps."""
        return _open_once(self.pins / name, self._opened)

    def from_vm_raw(self, frame: bytes) -> None:
        """The local VM sends."""
        os.write(self.taps[0], VNET_HEADER + frame)


class Bed(LoadedPlane):
    """The host with its wires. `tag` begins the names of all it makes; `close` removes it all."""

    def __init__(
        self,
        tag: str,
        sizes: Sizes,
        *,
        role: VmRole = VmRole.PRIMARY,
        mtu: int = 1500,
        link_mtu: int | None = None,
        nics: int = 1,
        ends: Ends = IPV4,
    ) -> None:
        self.ends = ends
        self._stack, self._mtu = contextlib.ExitStack(), mtu
        self.host, self.client_side, self.peer_side = f"{tag}h", f"{tag}c", f"{tag}s"
        try:
            self._wires(mtu, link_mtu or mtu + 100)
            self.bpffs = Path(tempfile.mkdtemp(prefix=f"{tag}-bpf-"))
            self._stack.callback(self.bpffs.rmdir)
            mounts.mount_bpf(self.bpffs)
            self._stack.callback(mounts.unmount, self.bpffs)
            spec = PlaneSpec(
                vm="t",
                bpffs=self.bpffs,
                cache=CACHE,
                nics=tuple(PlaneNic(f"tap{n}", f"br{n}", mtu) for n in range(nics)),
                link_device="vx0",
                underlay=LINK,
                vxlan_port=PORT,
                link_address=ends.local,
                link_timeout_ms=60_000,
                notes_last_ms=60_000,
                heartbeat_ms=30,
                sizes=sizes,
            )
            namespaces.run_in(self.host, lambda: self._begin(spec, role))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove namespaces, mount and pins."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wires(self, mtu: int, link_mtu: int) -> None:
        for name in (self.host, self.client_side, self.peer_side):
            namespaces.create(name)
            self._stack.callback(namespaces.remove, name)
            namespaces.run_in(name, without_ipv6)
        namespaces.create_veth(UPLINK, CLIENT_END, self.host, self.client_side, mtu)
        namespaces.create_veth(LINK, PEER_END, self.host, self.peer_side, link_mtu)
        self.peer = namespaces.run_in(self.peer_side, self._open_peer)
        self._stack.callback(self.peer.close)

    def _open_peer(self) -> socket.socket:
        """The peer's host, from inside its namespace."""
        take_address(PEER_END, self.ends.peer, self.ends.prefix_length)
        return tunnel_socket(self.ends.peer)

    def _begin(self, spec: PlaneSpec, role: VmRole) -> None:
        take_address(LINK, self.ends.local, self.ends.prefix_length)
        for nic in spec.nics:
            bridges.create(nic.bridge)
        bridges.join(UPLINK, spec.nics[0].bridge)
        LoadedPlane.__init__(self, spec, role, self.ends)
        self._stack.callback(LoadedPlane.close, self)

    def pair(self, epoch: int = 1, mode: Mode = Mode.PRIMARY) -> None:
        """Paired with the peer, in an open epoch, the peer's plane heard."""
        super().pair(epoch, mode)
        self.from_peer_raw(BEACON, epoch)

    def from_peer_raw(self, frame: bytes, tag: int, vni: int = VNI, nic: int = 0) -> None:
        """A frame arrives over the link."""
        self.send_to_link(tunnelled(frame, tag, vni, nic))

    def send_to_link(self, packet: bytes, flags: int = 0) -> None:
        """The peer's host sends what `tunnelled` made. Flags as of send(2)."""
        self.peer.sendto(packet, flags, (self.ends.local, PORT))


# The peer plane's sign of life.
BEACON = b"\xff" * 6 + b"\x02" + bytes(5) + struct.pack("!H", abi.BEACON_ETHERTYPE) + bytes(50)


def tunnelled(frame: bytes, tag: int, vni: int = VNI, nic: int = 0) -> bytes:
    """The frame behind a VXLAN header with the group tag: what a UDP socket has to send."""
    return struct.pack("!BBHI", 0x88, 0, tag & 0xFFFF, (vni * abi.NICS + nic) << 8) + frame


def empty_maps(pins: Path, opened: dict[Path, RawMap]) -> None:
    """Every map of a VM as after loading, but for its configuration. `opened` is kept between."""
    for pin in pins.iterdir():
        if pin.name == "colo_conf" or pin.is_dir():
            continue
        _open_once(pin, opened).clear()


def _open_once(pin: Path, opened: dict[Path, RawMap]) -> RawMap:
    if pin not in opened:
        opened[pin] = RawMap(obj_get(str(pin)))
    return opened[pin]


def without_ipv6() -> None:
    """What the hosts say of themselves (router solicitations) would be counted, too."""
    for scope in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1\n")


def take_address(ifname: str, address: str, prefix_length: int) -> None:
    """Of a wire in a namespace `without_ipv6`."""
    if addresses.family(address) is socket.AF_INET6:
        Path(f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6").write_text("0\n")
    netdev.add_address(ifname, address, prefix_length)


def packet_socket(ifname: str, protocol: int = 3) -> socket.socket:
    """Protocol 0: to send only."""
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    s.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)  # a burst must not be lost here
    s.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
    s.bind((ifname, 0))
    return s


def tunnel_socket(address: str) -> socket.socket:
    """The peer's end of the tunnel. Over IPv6 too it comes without a checksum of its own."""
    family = addresses.family(address)
    s = socket.socket(family, socket.SOCK_DGRAM)
    if family is socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_UDP, _UDP_NO_CHECK6_RX, 1)
    s.bind((address, PORT))
    return s


def open_tap(ifname: str) -> int:
    """The VM's end of a tap that exists; what is written waits for room."""
    fd = tuntap.open_tap(ifname)
    os.set_blocking(fd, True)
    return fd
