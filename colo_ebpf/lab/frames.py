# SPDX-License-Identifier: GPL-2.0-only
"""Frames of a VM and of its client as bytes, fast: tests and benchmarks send millions."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from colo_ebpf.lab.checksum import checksum

VM_MAC, CLIENT_MAC = "52:54:00:12:34:56", "52:54:00:00:00:01"
VM, CLIENT = "192.0.2.10", "192.0.2.1"
_TO_CLIENT = bytes.fromhex((CLIENT_MAC + VM_MAC).replace(":", "")) + b"\x08\x00"
_TO_VM = bytes.fromhex((VM_MAC + CLIENT_MAC).replace(":", "")) + b"\x08\x00"
_VM, _CLIENT = socket.inet_aton(VM), socket.inet_aton(CLIENT)
FIN, SYN, RST, ACK = 1, 2, 4, 16


@dataclass(frozen=True, slots=True)
class Segment:
    """What a client sees of one segment of the VM."""

    seq: int
    ack: int
    flags: int
    window: int
    payload: bytes
    sums_right: bool
    options: bytes = b""
    port: int = 4711  # the client's


def stamps(options: bytes) -> tuple[int, int] | None:
    """TSval and TSecr, where `timestamps` put them."""
    if options[:4] != b"\x01\x01\x08\x0a":
        return None
    value, echo = struct.unpack_from("!II", options, 4)
    return value, echo


def timestamps(value: int, echo: int) -> bytes:
    """The options of an ordinary segment (RFC 7323, appendix A)."""
    return struct.pack("!BBBBII", 1, 1, 8, 10, value % 2**32, echo % 2**32)


def sack(left: int, right: int) -> bytes:
    """One block, behind timestamps (RFC 2018)."""
    return struct.pack("!BBBBII", 1, 1, 5, 10, left % 2**32, right % 2**32)


def sacked(options: bytes) -> tuple[int, int] | None:
    """The block that `sack` put there."""
    if options[12:16] != b"\x01\x01\x05\x0a":
        return None
    left, right = struct.unpack_from("!II", options, 16)
    return left, right


def _tcp(
    ports: tuple[int, int], fields: tuple[int, int, int, int], body: bytes, options: bytes = b""
) -> bytes:
    """A segment without its checksum; fields: seq, ack, flags, window."""
    seq, ack, flags, window = fields
    words = 5 + len(options) // 4
    numbers = (seq % 2**32, ack % 2**32, words << 4, flags, window, 0, 0)
    return struct.pack("!HHIIBBHHH", *ports, *numbers) + options + body


def _summed(segment: bytes, ends: bytes) -> bytes:
    pseudo = ends + struct.pack("!BBH", 0, 6, len(segment))
    return segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]


def _ip(source: bytes, target: bytes, body: bytes, protocol: int = 6) -> bytes:
    fields = (0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0)
    head = struct.pack("!BBHHHBBH", *fields) + source + target
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def of_vm(
    seq: int,
    payload: bytes = b"",
    ack: int = 0,
    flags: int = ACK,
    window: int = 1000,
    *,
    port: int = 4711,
    options: bytes = b"",
) -> bytes:
    """A frame of the VM, from port 80."""
    segment = _tcp((80, port), (seq, ack, flags, window), payload, options)
    return _TO_CLIENT + _ip(_VM, _CLIENT, _summed(segment, _VM + _CLIENT))


def offloaded(seq: int, payload: bytes, ack: int, segment_bytes: int) -> bytes:
    """What a VM that leaves checksum and segmentation to its NIC writes to the tap."""
    segment = _tcp((80, 4711), (seq, ack, ACK, 1000), payload)
    pseudo = _VM + _CLIENT + struct.pack("!BBH", 0, 6, len(segment))
    partial = struct.pack("!H", ~checksum(pseudo) & 0xFFFF)
    header = struct.pack("=BBHHHH", 1, 1, 54, segment_bytes, 34, 16)
    return header + _TO_CLIENT + _ip(_VM, _CLIENT, segment[:16] + partial + segment[18:])


def datagram(number: int, payload: bytes = b"") -> bytes:
    """A UDP datagram of the VM without checksum; `number` makes it one of a kind."""
    body = struct.pack("!HHHHI", 7, 4712, 12 + len(payload), 0, number) + payload
    return _TO_CLIENT + _ip(_VM, _CLIENT, body, 17)


def datagram_number(frame: bytes) -> int | None:
    """Which one it is; None if it is none."""
    if frame[:14] != _TO_CLIENT or frame[23] != 17:
        return None
    return int(struct.unpack_from("!I", frame, 42)[0])


def of_client(
    seq: int,
    payload: bytes = b"",
    ack: int = 0,
    flags: int = ACK,
    *,
    port: int = 4711,
    options: bytes = b"",
) -> bytes:
    """A frame of the client."""
    segment = _tcp((port, 80), (seq, ack, flags, 1000), payload, options)
    return _TO_VM + _ip(_CLIENT, _VM, _summed(segment, _CLIENT + _VM))


def parse(frame: bytes) -> Segment | None:
    """A frame of the VM as the client's stack would take it; None if it is not one."""
    return _parse(frame, _TO_CLIENT)


def parse_to_vm(frame: bytes) -> Segment | None:
    """A frame of the client as the VM's stack would take it."""
    return _parse(frame, _TO_VM)


def _parse(frame: bytes, ethernet: bytes) -> Segment | None:
    if frame[:14] != ethernet or frame[23] != 6:
        return None
    total = struct.unpack_from("!H", frame, 16)[0]
    packet = frame[14 : 14 + total]
    body = packet[20:]
    ports = struct.unpack_from("!HH", body)
    seq, ack, offset, flags, window = struct.unpack_from("!IIBBH", body, 4)
    pseudo = packet[12:20] + struct.pack("!BBH", 0, 6, len(body))
    right = checksum(pseudo + body) == 0 and checksum(packet[:20]) == 0
    head = (offset >> 4) * 4
    port = max(ports)
    return Segment(seq, ack, flags, window, body[head:], right, body[20:head], port)
