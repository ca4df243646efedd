# SPDX-License-Identifier: GPL-2.0-only
"""What a decision says: a state, a sentence, and what is to be done. Frozen values.

A step is what awaits an outsider; one runs at a time.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from colo_ebpf.control.checkpoint.primary import Cause
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.peer.state import Answer
from colo_ebpf.model import Endpoints, Mode, Pairing, VmRole


class State(enum.Enum):
    """The states of one daemon. docs/reference/states.md says what each means."""

    UNKNOWN = "unknown"  # the record has not been read
    STANDBY = "standby"  # no VM, waits to be offered a pairing
    JOINING = "joining"  # secondary's QEMU runs, the record does not name it
    STARTING = "starting"  # cold start under way
    SOLO = "solo"
    PAIRING = "pairing"  # solo, making a replica
    PRIMARY = "primary"
    SECONDARY = "secondary"
    CLAIMED = "claimed"  # won, taking over, nothing emitted yet
    LOST = "lost"  # the peer claimed: withheld until it is active
    ENDING = "ending"  # a VM the record does not name is being ended
    OFF = "off"  # its guest powered it off: an operator starts it again
    STUCK = "stuck"  # only an operator can go on


@dataclass(frozen=True, slots=True)
class Read:
    """Read the record."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Compare-and-swap the record."""

    old: Record
    new: Record


@dataclass(frozen=True, slots=True)
class StartVm:
    """Start QEMU; a primary is let run (its output withheld), a secondary listens."""

    role: VmRole
    instance: str


@dataclass(frozen=True, slots=True)
class EndVm:
    """End this instance for good."""

    instance: str


@dataclass(frozen=True, slots=True)
class Synchronise:
    """Copy the disk to the peer and replicate every write from then on."""

    to: Endpoints


@dataclass(frozen=True, slots=True)
class EnterColo:
    """Migrate into COLO."""

    to: Endpoints


@dataclass(frozen=True, slots=True)
class LeavePair:
    """Drop child and migration of a pairing that failed; run on."""


@dataclass(frozen=True, slots=True)
class Yank:
    """Shut QEMU's sockets to the peer."""


@dataclass(frozen=True, slots=True)
class ContinueAlone:
    """The primary's failover."""


@dataclass(frozen=True, slots=True)
class TakeOver:
    """The secondary's failover."""


@dataclass(frozen=True, slots=True)
class GoPublic:
    """Solo: tap on the bridge, announce where the VM is."""


@dataclass(frozen=True, slots=True)
class Committed:
    """Are the overlays merged into the image? Fails while they are not."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Turn the other host off: it lost a claim that it never agreed to."""

    peer: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reserve:
    """Reserve the shared disks for this host: the other one cannot write to them any more."""


Step = (
    Read
    | Swap
    | StartVm
    | EndVm
    | Synchronise
    | EnterColo
    | LeavePair
    | Yank
    | ContinueAlone
    | TakeOver
    | GoPublic
    | Committed
    | Fence
    | Reserve
)


class TaskKind(enum.Enum):
    """Undertakings of several steps."""

    PAIR = "pair"
    JOIN = "join"


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt. Another vni is another attempt, whose steps begin anew.

    `instance`: PAIR: the secondary's, once it is ready. JOIN: ours, made for this attempt.
    """

    kind: TaskKind
    vni: int
    instance: str = ""


class Side(enum.Enum):
    """Which side of the checkpoints this daemon takes."""

    NONE = "none"
    PRIMARY = "primary"
    SECONDARY = "secondary"


@dataclass(frozen=True, slots=True)
class Decision:
    """What should be now. `step` is run unless another one is under way."""

    state: State
    sentence: str
    mode: Mode | None = None  # None: leave it as the kernel has it
    step: Step | None = None
    task: Task | None = None
    pairing: Pairing | None = None
    side: Side = Side.NONE
    ask: Cause | None = None
    cancels: bool = False  # a running pairing step has lost its purpose
    still: bool = False  # begin no checkpoint
    answer: Answer | None = None  # what became of the request: it is forgotten
    gap: str = ""  # why a single failure now might not be survived; see `protection`
