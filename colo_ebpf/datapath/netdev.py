# SPDX-License-Identifier: GPL-2.0-only
"""Devices, addresses, routes and namespaces, through pyroute2.

All functions are synchronous, idempotent and act in the calling thread's network namespace;
callers inside an event loop use ``asyncio.to_thread``. `in_namespace` runs a function in a
named one. Failures are AttachErrors that name the object.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from colo_ebpf.datapath.abi import Line
from colo_ebpf.errors import AttachError

T = TypeVar("T")

VXLAN_OVERHEAD_BYTES = 50  # outer Ethernet is not counted: IPv4 20, UDP 8, VXLAN 8, inner 14
ETHERNET_BYTES = 14
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_RTAX_QUICKACK = "quickack"


@contextlib.contextmanager
def _netlink(what: str) -> Iterator[Any]:
    try:
        with IPRoute() as ipr:
            yield ipr
    except NetlinkError as e:
        raise AttachError(f"{what}: {e.args[1] if len(e.args) > 1 else e}") from e


def in_namespace(name: str, function: Callable[[], T]) -> T:
    """Run `function` in the named network namespace, in a thread of its own.

    Only the network namespace is entered: `ip netns exec` would remount /sys and hide bpffs.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            netns.setns(name)
            result.append(function())
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=run, name=f"netns-{name}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def namespaces() -> list[str]:
    """Names of the network namespaces of this machine."""
    return sorted(netns.listnetns())


def create_namespace(name: str) -> None:
    """Make a named network namespace with its loopback up."""
    with contextlib.suppress(FileExistsError):
        netns.create(name)
    in_namespace(name, lambda: set_up("lo"))


def remove_namespace(name: str) -> None:
    """Remove a named network namespace and every device in it."""
    with contextlib.suppress(FileNotFoundError):
        netns.remove(name)


def index_of(ifname: str) -> int:
    """Interface index; AttachError if there is no such device."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError as e:
        raise AttachError(f"{ifname}: no such network device; create it first") from e


def exists(ifname: str) -> bool:
    """Is there a device of this name?"""
    try:
        socket.if_nametoindex(ifname)
    except OSError:
        return False
    return True


def in_use(ifname: str) -> bool:
    """Of a tap: it is there, and somebody, a VM, has it open."""
    if not exists(ifname):
        return False
    with _netlink(f"device {ifname}") as ipr:
        (link,) = ipr.get_links(index_of(ifname))
        return bool(link.get_attr("IFLA_CARRIER"))


def mtu_of(ifname: str) -> int:
    """MTU in bytes."""
    with _netlink(f"{ifname}: read MTU") as ipr:
        links = ipr.get_links(index_of(ifname))
        return int(links[0].get_attr("IFLA_MTU"))


def set_up(ifname: str, mtu: int | None = None) -> None:
    """Bring a device up, with an MTU if one is given."""
    with _netlink(f"{ifname}: set up") as ipr:
        options = {"mtu": mtu} if mtu else {}
        ipr.link("set", index=index_of(ifname), state="up", **options)


def set_down(ifname: str) -> None:
    """Take a device down."""
    with _netlink(f"{ifname}: set down") as ipr:
        ipr.link("set", index=index_of(ifname), state="down")


def remove(ifname: str) -> None:
    """Delete a device that may be gone already."""
    if not exists(ifname):
        return
    with _netlink(f"{ifname}: delete") as ipr:
        ipr.link("del", index=index_of(ifname))


def create_bridge(ifname: str) -> None:
    """Make a bridge, without STP and its forwarding delay."""
    if not exists(ifname):
        with _netlink(f"bridge {ifname}: create") as ipr:
            ipr.link("add", ifname=ifname, kind="bridge", br_stp_state=0, br_forward_delay=0)
    set_up(ifname)


def join_bridge(ifname: str, bridge: str) -> None:
    """Make a device a port of the bridge."""
    with _netlink(f"{ifname}: join bridge {bridge}") as ipr:
        ipr.link("set", index=index_of(ifname), master=index_of(bridge))


def leave_bridge(ifname: str) -> None:
    """Take a device off its bridge."""
    with _netlink(f"{ifname}: leave its bridge") as ipr:
        ipr.link("set", index=index_of(ifname), master=0)


def open_tap(ifname: str) -> int:
    """The VM's end of a one-queue tap, made if there is none; AttachError if it is open already."""
    request = struct.pack("16sH", ifname.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    except OSError as e:
        raise AttachError(f"/dev/net/tun: {e.strerror}; load the tun module") from e
    try:
        fcntl.ioctl(fd, _TUNSETIFF, request.ljust(40, b"\0"))
    except OSError as e:
        os.close(fd)
        raise AttachError(f"tap {ifname}: open: {e.strerror}") from e
    return fd


def create_tap(ifname: str, mtu: int) -> None:
    """Make a persistent one-queue tap, and bring it up."""
    if not exists(ifname):
        fd = open_tap(ifname)
        try:
            fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        except OSError as e:
            raise AttachError(f"tap {ifname}: keep: {e.strerror}") from e
        finally:
            os.close(fd)
    _no_router_solicitation(ifname)
    set_up(ifname, mtu)
    _steer(ifname, ())  # it would run the programs later, in another epoch than the frame's


def _no_router_solicitation(ifname: str) -> None:
    """The host itself has nothing to say on the VM's wire."""
    path = Path(f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6")
    with contextlib.suppress(OSError):
        path.write_text("1\n")


def backlog_frames() -> int | None:
    """How many frames may wait for one CPU; None: not to be seen from this namespace."""
    try:
        return int(BACKLOG.read_text())
    except OSError:
        return None


def cpu_mask(cpus: Iterable[int]) -> str:
    """CPUs as /sys wants them: hexadecimal, in groups of 32 bits."""
    digits = f"{sum(1 << cpu for cpu in cpus):x}"
    first = len(digits) % 8
    groups = [digits[at : at + 8] for at in range(first, len(digits), 8)]
    return ",".join([digits[:first], *groups] if first else groups)


def _steer(ifname: str, cpus: Iterable[int]) -> None:
    """RPS: frames of one connection go to one of these CPUs; of none: they stay where they are."""
    mask = cpu_mask(cpus)
    for queue in Path(f"/sys/class/net/{ifname}/queues").glob("rx-*/rps_cpus"):
        with contextlib.suppress(OSError):
            queue.write_text(f"{mask}\n")


def create_veth(ifname: str, peer: str, namespace: str, peer_namespace: str, mtu: int) -> None:
    """A veth pair with one end in each named namespace, both up."""

    def make() -> None:
        with _netlink(f"veth {ifname}: create") as ipr:
            ipr.link(
                "add",
                ifname=ifname,
                kind="veth",
                mtu=mtu,
                peer={"ifname": peer, "net_ns_fd": peer_namespace, "mtu": mtu},
            )

    in_namespace(namespace, make)
    in_namespace(namespace, lambda: set_up(ifname, mtu))
    in_namespace(peer_namespace, lambda: set_up(peer, mtu))


def delay_line(link_device: str) -> tuple[str, str]:
    """The devices at its beginning and at its end; a name has 15 characters at most."""
    return f"{link_device[:11]}-in", f"{link_device[:11]}-out"


def create_delay_line(first: str, last: str, mtu: int, heartbeat_ms: int) -> None:
    """A veth pair: what is sent into `first` comes out of `last` some ten microseconds later,
    by an HTB queue; of what is put into the class of beacons one comes out in a heartbeat.
    AttachError if the kernel has no HTB."""
    if not exists(first):
        with _netlink(f"veth {first}: create") as ipr:
            ipr.link("add", ifname=first, kind="veth", peer={"ifname": last})
    for one in (first, last):
        _no_router_solicitation(one)
        set_up(one, mtu)
    _delay(first, (mtu + ETHERNET_BYTES) * 1000 / heartbeat_ms)
    _steer(last, range(os.sysconf("SC_NPROCESSORS_CONF")))  # or a connection's order would be lost


def _delay(ifname: str, beats_bytes_s: float) -> None:
    """By the command, all at once: pyroute2's HTB knows no `mpu`."""
    argv = ["tc", "-batch", "-"]
    lines = "\n".join(_line_commands(ifname, beats_bytes_s))
    try:
        done = subprocess.run(argv, input=lines, capture_output=True, text=True, check=False)
    except OSError as e:
        raise AttachError(f"{ifname}: {argv[0]}: {e.strerror}; install iproute2") from e
    if done.returncode:
        raise AttachError(f"{ifname}: tc: {done.stderr.strip() or done.returncode}")


def _is_htb(ifname: str) -> bool:
    with _netlink(f"{ifname}: qdiscs") as ipr:
        return any(
            one.get_attr("TCA_KIND") == "htb" for one in ipr.get_qdiscs(index=index_of(ifname))
        )


def add_address(ifname: str, address: str, prefix_length: int) -> None:
    """Give a device an IPv4 address."""
    with _netlink(f"{ifname}: address {address}/{prefix_length}") as ipr:
        try:
            ipr.addr("add", index=index_of(ifname), address=address, prefixlen=prefix_length)
        except NetlinkError as e:
            if e.code != errno.EEXIST:
                raise


def check_link_mtu(underlay: str, guest_mtu: int) -> None:
    """The tunnel adds 50 bytes to the guest's frames; a smaller link would lose them."""
    mtu, need = mtu_of(underlay), guest_mtu + VXLAN_OVERHEAD_BYTES
    if mtu < need:
        raise AttachError(
            f"link {underlay}: its MTU of {mtu} is too small for the guest's {guest_mtu}-byte "
            f"packets plus {VXLAN_OVERHEAD_BYTES} bytes of tunnel; set it to {need} or more "
            f"on both hosts"
        )


def create_vxlan(ifname: str, port: int, mtu: int) -> None:
    """The link device: VXLAN in external (collect-metadata) mode with group policy (GBP)."""
    if not exists(ifname):
        _add_vxlan(ifname, f"on port {port}", port, vxlan_collect_metadata=True)
    _no_router_solicitation(ifname)
    set_up(ifname, mtu)
    set_offload(ifname, Offload.GRO, False)  # the SVM's segments are compared as they came


def create_vxlan_to(ifname: str, vni: int, remote: str, port: int, mtu: int) -> None:
    """A tunnel to one host, as a peer's looks from there: a frame's mark becomes its group."""
    to = {"vxlan_id": vni, "vxlan_group": remote, "vxlan_udp_csum": False}
    _add_vxlan(ifname, f"to {remote}", port, **to)
    set_up(ifname, mtu)


def _add_vxlan(ifname: str, where: str, port: int, **more: Any) -> None:
    with _netlink(f"VXLAN {ifname}: create {where}") as ipr:
        ipr.link(
            "add",
            ifname=ifname,
            kind="vxlan",
            vxlan_gbp=True,
            vxlan_port=port,
            vxlan_learning=False,
            **more,
        )


BACKLOG = Path("/proc/sys/net/core/netdev_max_backlog")
BACKLOG_FRAMES = 10_000  # as packaging/60-colo-ebpf.conf sets it

# 64 KB take 37 us, and a short frame as long, or it would come round without a pause. The classes
# have no rate of their own worth the name: they borrow, the first before all, the others 3 to 1.
_RATE = "14gbit"
_BURST = "burst 100000 cburst 100000 mpu 65535"
_LINE_PRIORITIES = {Line.FIRST: (0, 100_000), Line.LATE: (1, 300_000), Line.NEW: (1, 100_000)}


def _line_commands(ifname: str, beats_bytes_s: float) -> Iterator[str]:
    if not _is_htb(ifname):  # else what waits in it stays
        yield f"qdisc replace dev {ifname} root handle 1: htb default {_minor(Line.NEW)}"
    yield f"class replace dev {ifname} parent 1: classid 1:ff htb rate {_RATE} {_BURST}"
    for line, (priority, quantum) in _LINE_PRIORITIES.items():
        yield (
            f"class replace dev {ifname} parent 1:ff classid 1:{_minor(line)}"
            f" htb rate 1mbit ceil {_RATE} {_BURST} prio {priority} quantum {quantum}"
        )
        yield f"qdisc replace dev {ifname} parent 1:{_minor(line)} bfifo limit 64mb"
    # A beacon owes the time until the next: with no burst two are never nearer than that.
    beats = f"rate {beats_bytes_s * 8:.0f}bit burst 1 cburst 1 prio 0 quantum 100000"
    yield f"class replace dev {ifname} parent 1: classid 1:{_minor(Line.BEAT)} htb {beats}"
    yield f"qdisc replace dev {ifname} parent 1:{_minor(Line.BEAT)} pfifo limit 1"


def _minor(line: Line) -> str:
    return f"{line & 0xFFFF:x}"


class Offload(enum.IntEnum):
    """What a device does for the stack, by the command that sets it (linux/ethtool.h)."""

    TX_CHECKSUM = 0x17
    TSO = 0x1F
    GRO = 0x2C


def set_offload(ifname: str, offload: Offload, on: bool) -> None:
    """Switch it (ioctl SIOCETHTOOL, struct ethtool_value). Raises AttachError."""
    value = struct.pack("II", offload, on)
    buffer = bytearray(value)
    address = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    pointer = ctypes.addressof(address)
    request = struct.pack("16sQ", ifname.encode(), pointer).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            fcntl.ioctl(s.fileno(), 0x8946, request)
        except OSError as e:
            what = f"switch {offload.name} {'on' if on else 'off'}"
            raise AttachError(f"{ifname}: {what}: {e.strerror}") from e


def set_quickack(peer: str) -> None:
    """A host route to the peer with `quickack 1`.

    QEMU's small COLO messages otherwise wait for a delayed ACK, about 40 ms a checkpoint.
    """
    with _netlink(f"route to {peer}: quickack") as ipr:
        route = ipr.route("get", dst=peer)[0]
        options: dict[str, Any] = {"dst": f"{peer}/32", "oif": route.get_attr("RTA_OIF")}
        gateway = route.get_attr("RTA_GATEWAY")
        if gateway:
            options["gateway"] = gateway
        else:
            options["scope"] = 253  # link
        ipr.route("replace", metrics={_RTAX_QUICKACK: 1}, **options)
