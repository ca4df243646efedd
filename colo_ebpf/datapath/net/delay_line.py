# SPDX-License-Identifier: GPL-2.0-only
"""The delay line: a veth pair whose queue gives back what it takes a little later.

As `netdev`: synchronous, idempotent, in the calling thread's namespace, AttachError on failure.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator

from colo_ebpf.datapath.bpf.abi import Line
from colo_ebpf.datapath.net import netdev, rps
from colo_ebpf.errors import AttachError

_NAME, _DIGEST = 11, 6  # characters: with `-out` behind it a name is full
# 64 KB take 37 us, and a short frame as long, or it would come round without a pause. The classes
# have no rate of their own worth the name: they borrow, the first before all, the others 3 to 1.
_RATE = "14gbit"
_BURST = "burst 100000 cburst 100000 mpu 65535"
_PRIORITIES = {Line.FIRST: (0, 100_000), Line.LATE: (1, 300_000), Line.NEW: (1, 100_000)}


def names(link_device: str) -> tuple[str, str]:
    """The devices at its beginning and at its end. A name has 15 characters at most: of a long one
    the end is replaced by its digest, or two that begin alike would share one line."""
    name = link_device
    if len(name) > _NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()
        name = f"{name[: _NAME - _DIGEST]}{digest[:_DIGEST]}"
    return f"{name}-in", f"{name}-out"


def create(first: str, last: str, mtu: int, heartbeat_ms: int) -> None:
    """A veth pair: what is sent into `first` comes out of `last` some ten microseconds later,
    by an HTB queue; of what is put into the class of beacons one comes out in a heartbeat.
    AttachError if the kernel has no HTB."""
    if not netdev.exists(first):
        with netdev.netlink(f"veth {first}: create") as ipr:
            ipr.link("add", ifname=first, kind="veth", peer={"ifname": last})
    for one in (first, last):
        netdev.disable_ipv6(one)
        netdev.set_up(one, mtu)
    _delay(first, (mtu + netdev.ETHERNET_BYTES) * 1000 / heartbeat_ms)
    # Or a connection's order would be lost.
    rps.steer(last, range(os.sysconf("SC_NPROCESSORS_CONF")))


def _delay(ifname: str, beats_bytes_s: float) -> None:
    """By the command, all at once: pyroute2's HTB knows no `mpu`."""
    argv = ["tc", "-batch", "-"]
    lines = "\n".join(_commands(ifname, beats_bytes_s))
    try:
        done = subprocess.run(argv, input=lines, capture_output=True, text=True, check=False)
    except OSError as e:
        raise AttachError(f"{ifname}: {argv[0]}: {e.strerror}; install iproute2") from e
    if done.returncode:
        raise AttachError(f"{ifname}: tc: {done.stderr.strip() or done.returncode}")


def is_htb(ifname: str) -> bool:
    """Has it the queue of a delay line?"""
    with netdev.netlink(f"{ifname}: qdiscs") as ipr:
        return any(
            one.get_attr("TCA_KIND") == "htb"
            for one in ipr.get_qdiscs(index=netdev.index_of(ifname))
        )


def _commands(ifname: str, beats_bytes_s: float) -> Iterator[str]:
    if not is_htb(ifname):  # else what waits in it stays
        yield f"qdisc replace dev {ifname} root handle 1: htb default {_minor(Line.NEW)}"
    yield f"class replace dev {ifname} parent 1: classid 1:ff htb rate {_RATE} {_BURST}"
    for line, (priority, quantum) in _PRIORITIES.items():
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
