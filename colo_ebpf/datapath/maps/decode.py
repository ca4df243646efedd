# SPDX-License-Identifier: GPL-2.0-only
"""Map values turned into the values of `colo_ebpf.model`. Pure."""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Iterable

from colo_ebpf.datapath.bpf import abi
from colo_ebpf.model import Counter, Lateness, PlaneEvent, PlaneEventKind

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}


def _name(kind: type[abi.Reason] | type[abi.Verdict] | type[abi.Prog], number: int) -> str:
    try:
        return kind(number).name.lower().replace("_", "-")
    except ValueError:
        return str(number)


def _address(words: Iterable[int]) -> str:
    """IPv4 as such, IPv6 in brackets; what is neither has the empty address."""
    address = ipaddress.IPv6Address(struct.pack("=4I", *words))
    if not int(address):
        return "-"
    return str(address.ipv4_mapped) if address.ipv4_mapped else f"[{address}]"


def flow_text(key: abi.FlowKey, protocol: int) -> str:
    """`tcp 192.0.2.1:80 > 192.0.2.9:4711`: from the VM to the client.

    Behind it, where there are any, the VLAN tags (`vlan 7.12`: outer and inner) and the number of
    the NIC (`nic 1`) if it is not the first.
    """
    name = _PROTOCOLS.get(protocol, f"ip{protocol}" if protocol else "frame")
    tags = f" vlan {key.vlan}" if key.vlan or key.inner_vlan else ""
    tags += f".{key.inner_vlan}" if key.inner_vlan else ""
    nic = f" nic {key.nic}" if key.nic else ""
    vm = f"{_address(key.vm)}:{socket.ntohs(key.vm_port)}"
    client = f"{_address(key.client)}:{socket.ntohs(key.client_port)}"
    return f"{name} {vm} > {client}{tags}{nic}"


def event_of(record: abi.Mismatch) -> PlaneEvent:
    """A ring buffer record, or an entry of the mismatch log."""
    return PlaneEvent(
        kind=PlaneEventKind(record.kind),
        at_ns=record.at_ns,
        epoch=record.epoch,
        flow=flow_text(record.flow, record.proto),
        offset=record.offset,
        pvm_digest=record.pvm_digest,
        svm_digest=record.svm_digest,
        reason=_name(abi.Reason, record.reason),
    )


def mismatch_rows(raw: bytes) -> list[PlaneEvent]:
    """The mismatch log, oldest first; unused entries are left out."""
    rows = (abi.Mismatch * abi.MISMATCHES).from_buffer_copy(raw)
    return sorted((event_of(row) for row in rows if row.kind), key=lambda event: event.at_ns)


def late_counts(raw: bytes, cpus: int) -> Lateness:
    """The per-CPU map `colo_late`, summed over the CPUs."""
    words = struct.unpack(f"={len(raw) // 8}Q", raw)
    sums = [sum(words[at : at + cpus]) for at in range(0, len(words), cpus)]
    rows = [tuple(sums[row * abi.LATE_BUCKETS :][: abi.LATE_BUCKETS]) for row in abi.LateRow]
    return Lateness(usual=rows[abi.LateRow.USUAL], loaded=rows[abi.LateRow.LOADED])


def count_index(program: abi.Prog, verdict: abi.Verdict, reason: abi.Reason) -> int:
    """Where a row of the counter array is."""
    return (program * len(abi.Verdict) + verdict) * abi.REASONS + reason


def count_rows(raw: bytes, cpus: int) -> list[Counter]:
    """Non-zero rows of the per-CPU counter array, summed over the CPUs."""
    size = ctypes.sizeof(abi.Count) * cpus
    rows = []
    for index in range(len(raw) // size):
        part = raw[index * size : (index + 1) * size]
        if not any(part):
            continue
        words = struct.unpack(f"={2 * cpus}Q", part)
        program, rest = divmod(index, len(abi.Verdict) * abi.REASONS)
        verdict, reason = divmod(rest, abi.REASONS)
        rows.append(
            Counter(
                _name(abi.Prog, program),
                _name(abi.Verdict, verdict),
                _name(abi.Reason, reason),
                sum(words[0::2]),
                sum(words[1::2]),
            )
        )
    return rows
