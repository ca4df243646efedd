# SPDX-License-Identifier: GPL-2.0-only
"""Values that cross package borders: enums and frozen dataclasses, no I/O.

Times are CLOCK_BOOTTIME nanoseconds (``time.clock_gettime_ns(time.CLOCK_BOOTTIME)``), the
clock the BPF programs use, unless a name says otherwise.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field


class Mode(enum.IntEnum):
    """What the data plane does with the frames of the local VM (``enum colo_mode`` in C)."""

    WITHHOLD = 0  # nothing leaves, nothing is stored: the safe default
    PAIRING = 1  # compared and held, nothing released: the record does not name a pair yet
    PRIMARY = 2  # verified frames leave, the rest is held
    SECONDARY = 3  # frames go over the link, none to the client side
    SOLO = 4  # everything leaves


class Phase(enum.IntEnum):
    """The second half of the turn cell (``enum colo_phase`` in C)."""

    OPEN = 0
    TURNING = 1  # between arming and the proven turn of a checkpoint: every frame is held


@dataclass(frozen=True, slots=True)
class Turn:
    """The VM's turn cell. Epoch 0 matches nothing."""

    epoch: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class Pairing:
    """What the link ingress accepts: the pairing's VNI, from this tunnel source only."""

    vni: int  # 1..2^21-1, new at each pairing; with the number of the NIC behind it, the VXLAN id
    peer_address: str  # underlay address of the peer


class PlaneEventKind(enum.IntEnum):
    """Why the data plane wakes the control plane (``enum colo_event_kind`` in C)."""

    MISMATCH = 1  # both sides produced different output at the same place
    HELD = 2  # first frame held since the last rearm_held()
    STORE_FULL = 3  # the hold store passed its high mark or had no slot
    EPOCH_AHEAD = 4  # a link frame carried a newer epoch: the plane set TURNING itself
    MISSED_INPUT = 5  # the SVM resends what the client has acknowledged
    SVM_RESET = 6  # the SVM has reset a connection, and the PVM says more on it
    GAP = 7  # output of the PVM went by unseen: the flow cannot be verified


@dataclass(frozen=True, slots=True)
class PlaneEvent:
    """One record of the ring buffer. Flow is printable (``proto src:port > dst:port``)."""

    kind: PlaneEventKind
    at_ns: int
    epoch: int
    flow: str
    offset: int  # sequence number where the two sides part, or 0
    pvm_digest: int
    svm_digest: int
    reason: str  # stable name of the counted reason


@dataclass(frozen=True, slots=True)
class HeldReport:
    """The hold store as it is now."""

    frames: int
    bytes: int
    oldest_ns: int | None  # boot time the oldest held frame of the current epoch came
    slots: int  # capacity


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is held, as far as it matters for how long. Boot times of the oldest; None: none.

    `answer_ns`: of what the SVM has to produce; `data_ns`: of it, what the guest's programs say:
    not that a connection is accepted. `timer_ns`: of what comes by a timer of TCP (an ACK
    that waits for the SVM's), or by the PVM (a reset that the SVM sent first). `compared`: frames
    that have left, ever, because the SVM produced the same.
    """

    answer_ns: int | None = None
    data_ns: int | None = None
    timer_ns: int | None = None
    frames: int = 0
    compared: int = 0

    @property
    def oldest_ns(self) -> int | None:
        """Of both."""
        both = [at for at in (self.answer_ns, self.timer_ns) if at is not None]
        return min(both, default=None)


FRESH_NS = 1 << 29  # after a load the SVM is slower: its caches are cold
_LATE_UNIT_NS = 1024
_LATE_TICK_NS = 4_000_000  # bucket 0: it came in the same tick of the kernel


@dataclass(frozen=True, slots=True)
class Lateness:
    """How long after the PVM's frame the SVM's equal one came, when it came second.

    Counts in buckets, each twice as long as the one before: bucket n ends at ``2^n`` times 1,024
    ns, bucket 0 at a tick of the kernel. `loaded`: soon after a load.
    """

    usual: tuple[int, ...] = ()
    loaded: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """All that were counted."""
        return sum(self.usual) + sum(self.loaded)

    @property
    def waited_ns(self) -> int:
        """What all of them waited together, as far as the buckets tell."""
        rows = (*enumerate(self.usual), *enumerate(self.loaded))
        return sum(count * _late_end_ns(n) * 3 // 4 for n, count in rows)


def _late_end_ns(bucket: int) -> int:
    return _LATE_UNIT_NS << bucket if bucket else _LATE_TICK_NS


def late_within_ns(counts: Sequence[float], share: float) -> int | None:
    """No longer than this for that share of the counts of one row; None: there are none."""
    left = sum(counts) * share
    if not left:
        return None
    for n, count in enumerate(counts):
        left -= count
        if left <= 0:
            return _late_end_ns(n)
    return _late_end_ns(len(counts) - 1)


@dataclass(frozen=True, slots=True)
class FlushReport:
    """What one flush() did."""

    emitted: int
    left: int  # frames of past epochs still in the store (retry), 0 when drained


@dataclass(frozen=True, slots=True)
class Counter:
    """Packets and bytes that left a program under one reason."""

    program: str
    verdict: str
    reason: str
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Lack:
    """Something on this host's devices is not as the data plane needs it. `hopeless`: it cannot be
    put back under the VM that runs."""

    what: str
    hopeless: bool = False


class VmRole(enum.Enum):
    """How a QEMU was started."""

    PRIMARY = "primary"
    SECONDARY = "secondary"  # -incoming


class VmHealth(enum.Enum):
    """What one daemon says of its VM."""

    NONE = "none"
    STARTING = "starting"
    INCOMING = "incoming"  # a secondary that has no state yet
    RUNNING = "running"
    GONE = "gone"  # the process ended
    BROKEN = "broken"  # RAM new, disk old: never runs again


class VmEventKind(enum.Enum):
    """QMP events and process facts, in the order they happened."""

    STOP = "STOP"
    RESUME = "RESUME"
    MIGRATION = "MIGRATION"
    MIGRATION_PASS = "MIGRATION_PASS"
    COLO_EXIT = "COLO_EXIT"
    DISK_BAD = "QUORUM_REPORT_BAD"
    BLOCK_ERROR = "BLOCK_IO_ERROR"
    EXPORT_GONE = "BLOCK_EXPORT_DELETED"
    SHUTDOWN = "SHUTDOWN"
    RESET = "RESET"
    PANICKED = "GUEST_PANICKED"
    MONITOR_LOST = "MONITOR_LOST"
    HUNG = "HUNG"  # the process does not answer, out of band either
    ANSWERS = "ANSWERS"  # after that
    GONE = "GONE"


@dataclass(frozen=True, slots=True)
class VmEvent:
    """One event of a VM; ``data`` is the QMP event's data, with QEMU's clock as ``at_s`` (seconds
    since 1970)."""

    kind: VmEventKind
    at_ns: int
    data: dict[str, object] = field(default_factory=dict)


class Settled(enum.Enum):
    """Whether a secondary's state is whole (from its COLO trace and events)."""

    CURRENT = "settled-current"  # no STOP open
    NEW = "settled-new"  # RESUME after the STOP
    OLD = "settled-old"  # COLO_EXIT after the STOP, no vmstate-received sent
    BROKEN = "broken"  # vmstate-received sent, then COLO_EXIT without RESUME
    OPEN = "unsettled"  # inside a load


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a secondary's QEMU listens, on its link address."""

    address: str
    nbd_port: int
    migration_port: int
    replicas: tuple[str, ...] = ()  # whose remains its images are, oldest first; the last: its own


@dataclass(frozen=True, slots=True)
class Sending:
    """A TCP connection of this host, as the kernel sees it."""

    here: int  # port
    port: int  # at the other end
    connected: bool  # False: it is still being made
    unanswered: int  # segments that were sent and not acknowledged
    tries: int  # to send the oldest of them again
    silent_ms: int  # since the last acknowledgement


@dataclass(frozen=True, slots=True)
class OverlayUse:
    """What a secondary's overlays of one disk take."""

    disk: int
    used_bytes: int
    limit_bytes: int
    free_bytes: int  # left in their file system

    @property
    def room_bytes(self) -> int:
        """What they may still take."""
        return min(self.limit_bytes - self.used_bytes, self.free_bytes)


@dataclass(frozen=True, slots=True)
class LentImage:
    """A primary's image that may be read for a while, and what the secondary has of it."""

    export: str
    path: str  # unix socket of the local image
    replica: str  # the secondary's export
    host: str
    port: int
    shared: bool  # one disk: the secondary's export has what it had at the last checkpoint


@dataclass(frozen=True, slots=True)
class Progress:
    """Of a long step, for status and logs, in bytes. ``total``, ``rate_bytes_s`` 0 = unknown."""

    what: str
    done: int
    total: int
    rate_bytes_s: int = 0

    @property
    def left_s(self) -> int | None:
        """At this rate; None: not known."""
        return (self.total - self.done) // self.rate_bytes_s if self.rate_bytes_s else None
