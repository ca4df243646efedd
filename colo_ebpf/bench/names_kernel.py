# SPDX-License-Identifier: GPL-2.0-only
"""What the parts about the programs in the kernel measure: the names of rows and lanes."""

from __future__ import annotations

QEMU, OURS, WIRE = "qemu", "ours", "ours over devices"

# -- alone --

PAYLOADS = (1448, 64)  # bytes of TCP
SVM_FIRST, PVM_FIRST = "SVM first", "PVM first"
ORDERS = (SVM_FIRST, PVM_FIRST)
RATE = "packets/s"
CPU_OF = {
    QEMU: "per second of CPU of its process",
    OURS: "per second of run time of the programs",
    WIRE: "per second of run time of the programs",
}
WALL_OF = {
    QEMU: "with what feeds it, on the other CPU",
    OURS: "one CPU, frames made in the kernel",
    WIRE: "one CPU, with tap, tunnel, bridge and what feeds them",
}


def compare(payload_bytes: int, order: str) -> str:
    """A measure of the comparer alone."""
    return f"compare {payload_bytes} B, {order}"


def wall(measure: str) -> str:
    """The same by the wall clock."""
    return f"{measure}, wall clock"
