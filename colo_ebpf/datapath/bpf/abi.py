# SPDX-License-Identifier: GPL-2.0-only
"""The ctypes mirror of ``bpf/include/colo_abi.h``; a test compiles the header and compares."""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_uint8 as u8
from ctypes import c_uint16 as u16
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64
from typing import ClassVar

ABI_VERSION = 10
TURNING_BIT = 1
BEACON_ETHERTYPE = 0x88B5
LEAVE_ETHERTYPE = 0x88B6
BOUNDS = 64
HOLD_PART = 256
FLUSH_SLOTS = 64
PARK_CUTS = 8
LANES = 4
NICS = 8
DGRAM_WAYS = 8
MISMATCHES = 256
LATE_BUCKETS = 32
REASONS = 64


class Prog(enum.IntEnum):
    """``enum colo_prog``; the program's name in lower case after ``colo_``."""

    CMP_PVM = 0
    CMP_SVM = 1
    FLUSH = 2
    MIR_CLI = 3
    MIR_LINK = 4
    MIR_SVM = 5
    BEACON = 6
    LAST_IN = 7
    LAST_OUT = 8
    DRAIN = 9
    AGE = 10
    ENTER = 11
    FAREWELL = 12
    PARK = 13


class Verdict(enum.IntEnum):
    """``enum colo_verdict``."""

    PASS = 0
    DROP = 1
    HOLD = 2
    LINK = 3
    DELIVER = 4
    NOTE = 5
    CARRY = 6


class Reason(enum.IntEnum):
    """``enum colo_reason``: why a packet got its verdict. Numbers are never reused."""

    NONE = 0
    SOLO = 1
    RELEASED = 2
    VERIFIED = 3
    OLD = 4
    ACK = 5
    ACK_FLOOR = 6
    UNVERIFIED = 7
    TURNING = 8
    ORDER = 9
    HELD_AGAIN = 10
    GAP = 11
    STORE_FULL = 12
    TABLE_FULL = 13
    BUSY = 14
    MALFORMED = 15
    LINK_SILENT = 16
    NEIGHBOUR = 17
    WITHHELD = 18
    TOO_BIG = 19
    BEACON = 20
    NOT_OURS = 21
    STALE_EPOCH = 22
    EPOCH_AHEAD = 23
    NO_FLOW = 24
    NOT_ANCHORED = 25
    MISMATCH = 26
    FLUSHED = 27
    NO_PAIR = 28
    INPUT = 29
    CLONE_FAILED = 30
    REWRITTEN = 31
    PLAIN = 32
    NO_CONF = 33
    CARRIED = 34
    ACK_RAISED = 35
    AHEAD = 36
    EMIT_FAILED = 37
    PART = 38
    ENDED = 39
    FAREWELL = 40
    SAID_AGAIN = 41
    WHOLE = 42
    PARKED = 43
    CLIENT_GONE = 44
    RUN = 45
    POSES = 46
    WRONG_MAC = 47


class LiveWord(enum.IntEnum):
    """``enum colo_live_index``: the named words of the map ``colo_live``."""

    HEARD_NS = 0
    HOLD_HEAD = 1
    HELD = 2
    HELD_ARMED = 3
    MISMATCHES = 4
    EVENTS_LOST = 5
    CARRIED = 6
    FLOWS = 7
    BEAT_NS = 8
    BEAT_UNTIL_NS = 9
    LOADED_NS = 10


LIVE_WORDS = 11


class LateRow(enum.IntEnum):
    """``enum colo_late_row``: rows of the map ``colo_late``."""

    USUAL = 0
    LOADED = 1


LATES = 2


class OffFlag(enum.IntFlag):
    """``enum colo_off_flag``."""

    ISN = 1
    DELTA = 2
    TS_ISN = 4
    TS_DELTA = 8
    TS_SENT = 16
    TS_SEEN = 32


class FlowFlag(enum.IntFlag):
    """``enum colo_flow_flag``."""

    ANCHORED = 1
    HAS_HIGH = 2
    HAS_ACK = 4
    HAS_FLOOR = 8
    HAS_EDGE = 16
    SVM_SYN = 64
    PVM_SYN = 128
    PVM_SCALE = 256
    BAD = 512
    LOST = 1024
    PVM_FIN = 2048
    OVER = 4096
    RESET = 8192
    SVM_GAP = 16384


class SlotState(enum.IntEnum):
    """``enum colo_slot_state``."""

    FREE = 0
    FILLING = 1
    HELD = 2
    LEAVING = 3


class SlotKind(enum.IntEnum):
    """``enum colo_slot_kind``."""

    STREAM = 1
    ACK = 2
    DGRAM = 3
    SAID = 4
    PARKED = 5
    RESET = 6


class Line(enum.IntEnum):
    """``enum colo_line``: HTB class ids."""

    FIRST = 0x10001
    LATE = 0x10002
    NEW = 0x10003
    BEAT = 0x10004


class _Struct(ctypes.Structure):
    """Natural alignment, as the C compiler lays it out."""


class Conf(_Struct):
    """``struct colo_config``, the one entry of the map ``colo_conf``."""

    _fields_: ClassVar = [
        ("key", u64 * 2),
        ("link_timeout_ns", u64),
        ("dgram_timeout_ns", u64),
        ("lasting_epoch", u64),
        ("mode", u32),
        ("tap_ifindex", u32 * NICS),
        ("link_ifindex", u32),
        ("vni", u32),
        ("tunnel_flags", u32),
        ("local_ip", u32 * 4),
        ("peer_ip", u32 * 4),
        ("hold_slots", u32),
        ("hold_high", u32),
        ("dgram_buckets", u32),
        ("lasting", u32),
        ("park_ifindex", u32),
        ("pad", u32),
    ]


class FlowKey(_Struct):
    """``struct colo_flow_key``; addresses and ports in network order, IPv4 as ::ffff:a.b.c.d."""

    _fields_: ClassVar = [
        ("vm", u32 * 4),
        ("client", u32 * 4),
        ("vm_port", u16),
        ("client_port", u16),
        ("vlan", u16),
        ("inner_vlan", u16),
        ("nic", u16),
        ("pad", u16),
    ]


class Side(_Struct):
    """``struct colo_side``."""

    _fields_: ClassVar = [
        ("lane", u64 * LANES),
        ("part", u64 * LANES),
        ("next", u32),
        ("pad", u32),
    ]


class Bound(_Struct):
    """``struct colo_bound``."""

    _fields_: ClassVar = [("digest", u64), ("end", u32), ("pad", u32)]


class Flow(_Struct):
    """``struct colo_flow``, a value of the map ``colo_flows``."""

    _fields_: ClassVar = [
        ("lock", u64),
        ("emitter", u64),
        ("owner", u64),
        ("epoch", u64),
        ("seen_ns", u64),
        ("c_acked_ns", u64),
        ("parked_ns", u64),
        ("pvm", Side),
        ("svm", Side),
        ("flags", u32),
        ("anchor", u32),
        ("verified", u32),
        ("floor", u32),
        ("p_high", u32),
        ("p_ack", u32),
        ("s_edge", u32),
        ("c_ack", u32),
        ("isn", u32),
        ("s_syn_ack", u32),
        ("s_isn", u32),
        ("p_offer", u32),
        ("s_offer", u32),
        ("head", u32),
        ("tail", u32),
        ("held", u32),
        ("ack_slot", u32),
        ("unmet", u32),
        ("first_bound", u32),
        ("bounds", u32),
        ("stride", u32),
        ("strode", u32),
        ("gen", u32),
        ("p_scale", u8),
        ("s_scale", u8),
        ("s_resends", u8),
        ("more", u8),
        ("c_known", u32),
        ("unparked", u32),
        ("rounds", u32),
        ("svm_reset", u32),
        ("c_gone", u32),
        ("pad", u32),
        ("bound", Bound * BOUNDS),
    ]


class Slot(_Struct):
    """``struct colo_slot``, a value of the map ``colo_hold``."""

    _fields_: ClassVar = [
        ("state", u64),
        ("epoch", u64),
        ("at_ns", u64),
        ("digest", u64),
        ("flow", FlowKey),
        ("kind", u32),
        ("end", u32),
        ("next", u32),
        ("len", u32),
        ("tcp_off", u32),
        ("gen", u32),
        ("ack", u32),
        ("edge", u32),
        ("scale", u32),
        ("start", u32),
        ("part", u32),
        ("l3_off", u32),
        ("data_off", u32),
        ("bytes", u32),
    ]


class OffSlot(_Struct):
    """``struct colo_off_slot``."""

    _fields_: ClassVar = [
        ("epoch", u64),
        ("isn", u32),
        ("delta", u32),
        ("flags", u32),
        ("ts_isn", u32),
        ("ts_delta", u32),
        ("ts_sent", u32),
        ("ts_seen", u32),
        ("pad", u32),
    ]


class Off(_Struct):
    """``struct colo_off``, a value of the map ``colo_offs``."""

    _fields_: ClassVar = [("slot", OffSlot * 2)]


class Lasting(_Struct):
    """``struct colo_lasting``, a value of the map ``colo_last``."""

    _fields_: ClassVar = [("seen_ns", u64), ("delta", u32), ("ts_delta", u32)]


class Mismatch(_Struct):
    """``struct colo_mismatch``: an entry of ``colo_mism`` and a record of the ring buffer."""

    _fields_: ClassVar = [
        ("at_ns", u64),
        ("epoch", u64),
        ("pvm_digest", u64),
        ("svm_digest", u64),
        ("flow", FlowKey),
        ("offset", u32),
        ("reason", u16),
        ("kind", u8),
        ("proto", u8),
        ("pad", u32),
    ]


class Count(_Struct):
    """``struct colo_counter``, one per CPU."""

    _fields_: ClassVar = [("packets", u64), ("bytes", u64)]


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "colo_config": Conf,
    "colo_flow_key": FlowKey,
    "colo_side": Side,
    "colo_bound": Bound,
    "colo_flow": Flow,
    "colo_slot": Slot,
    "colo_off_slot": OffSlot,
    "colo_off": Off,
    "colo_lasting": Lasting,
    "colo_mismatch": Mismatch,
    "colo_counter": Count,
}
