# SPDX-License-Identifier: GPL-2.0-only
"""Map values turned into the values of `colo_ebpf.model`. Pure."""

from __future__ import annotations

import ctypes
import socket
import struct

from colo_ebpf.datapath import abi
from colo_ebpf.model import Counter, PlaneEvent, PlaneEventKind

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}


def _name(kind: type[abi.Reason] | type[abi.Verdict] | type[abi.Prog], number: int) -> str:
    try:
        return kind(number).name.lower().replace("_", "-")
    except ValueError:
        return str(number)


def flow_text(key: abi.FlowKey, protocol: int) -> str:
    """`tcp 192.0.2.1:80 > 192.0.2.9:4711`: from the VM to the client."""

    def end(address: int, port: int) -> str:
        return f"{socket.inet_ntoa(struct.pack('=I', address))}:{socket.ntohs(port)}"

    name = _PROTOCOLS.get(protocol, f"ip{protocol}")
    return f"{name} {end(key.vm, key.vm_port)} > {end(key.client, key.client_port)}"


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
