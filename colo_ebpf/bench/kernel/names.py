# SPDX-License-Identifier: GPL-2.0-only
"""What the parts about the programs in the kernel measure: the names of rows and lanes."""

from __future__ import annotations

QEMU, OURS, WIRE, LEAST = "qemu", "ours", "ours over devices", "limit"

# -- alone --

PAYLOADS = (1448, 64)  # bytes of TCP
SVM_FIRST, PVM_FIRST = "SVM first", "PVM first"
ORDERS = (SVM_FIRST, PVM_FIRST)
RATE = "packets/s"
CPU_OF = {
    QEMU: "per second of CPU of its process",
    OURS: "per second of run time of the programs",
    WIRE: "per second of run time of the programs",
    LEAST: "per second of run time of programs that do nothing but what has to be done",
}
WALL_OF = {
    QEMU: "with what feeds it, on the other CPU",
    OURS: "one CPU, frames made in the kernel",
    LEAST: "one CPU, frames made in the kernel",
    WIRE: "one CPU, with tap, tunnel, bridge and what feeds them",
}


def compare(payload_bytes: int, order: str) -> str:
    """A measure of the comparer alone."""
    return f"compare {payload_bytes} B, {order}"


def wall(measure: str) -> str:
    """The same by the wall clock."""
    return f"{measure}, wall clock"


# -- programs --

COST = "cost of a frame"  # the lane is the path
NOTED = "SVM first: its frame is noted"
PASSES = "SVM first: the PVM's passes"
HELD = "PVM first: its frame is held"
CARRIES = "PVM first: the SVM's carries it out"
PARKED = "PVM first: its frame is parked"
VERIFIES = "PVM first: the SVM's verifies it"
ROUNDS = "PVM first: its rounds in the delay line"
INSTRUCTIONS = "instructions"  # the lane is the program, here and below
VERIFIED = "instructions the verifier looked at"
MACHINE_CODE = "machine code"
LOOKUPS = "look-ups in hash tables"  # the lane is the path
LOAD = "compile and load"
LOAD_KEPT = "load, compiled before"
MEMORY = "memory of maps"  # the lane is the map
TOTAL = "all"
MACHINE = "all, by what the machine has left"


def sized(what: str, payload_bytes: int) -> str:
    """A path's lane, for one size of payload."""
    return f"{what}, {payload_bytes} B"


# -- growth --

RATIO = "max/min"
FLOWS, HELD_FRAMES, EPOCHS, VMS = "flows", "held frames", "epochs per second", "VMs on the host"
CORES = "both cores, two connections, throughput"
LOOK, LOOK_LINES = "both look-ups alone", "both look-ups, and the lines a frame needs"
BEHIND, ELSEWHERE = "in the connection itself", "in another connection"
LOAD_VM, MEMORY_VM = "load of one more VM, compiled before", "memory of one more VM"


def growth(what: str, line: str) -> str:
    """The measure of a curve."""
    return f"{what}: {line}"


def both(payload_bytes: int) -> str:
    """The line of both VMs' frames together."""
    return f"both VMs' frames of {payload_bytes} B"


def less_look(line: str) -> str:
    """The line without what look-ups became dearer: that is the caches', not the programs'."""
    return f"{line}, less the look-ups' growth"
