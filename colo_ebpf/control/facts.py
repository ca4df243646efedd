# SPDX-License-Identifier: GPL-2.0-only
"""What a decision looks at, and what it says. Frozen values, no behaviour."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from colo_ebpf.control.epoch import Loaded, Reason
from colo_ebpf.control.peer import Answer, PeerState
from colo_ebpf.control.record import Record
from colo_ebpf.model import Endpoints, Mode, Pairing, Settled, VmRole

MS = 1_000_000


class State(enum.Enum):
    """The states of one daemon. docs/states.md says what each means."""

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


# --- steps: everything that awaits an outsider. One runs at a time. -----------------------


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
)


@dataclass(frozen=True, slots=True)
class Failure:
    """The last step failed."""

    step: Step
    error: str
    at_ns: int


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


class Turns(enum.Enum):
    """Which side of the checkpoints this daemon takes."""

    NONE = "none"
    PRIMARY = "primary"
    SECONDARY = "secondary"


# --- facts ----------------------------------------------------------------------------------


class Wanted(enum.Enum):
    """How checkpoints come about, as the configuration says (`[checkpoint] mode`)."""

    AUTO = "auto"
    COMPARE = "compare"
    PERIODIC = "periodic"


@dataclass(frozen=True, slots=True)
class Pacing:
    """How checkpoints come about, from [checkpoint]. Nanoseconds."""

    wanted: Wanted = Wanted.AUTO
    period_ns: int = 0  # PERIODIC: between two; 0: as soon as output waits
    longest_wait_ns: int = 2_000 * MS  # of an answer, while the SVM is known to work
    max_pause_ns: int = 0  # epochs are made shorter for it; 0: they are not


@dataclass(frozen=True, slots=True)
class Timing:
    """Deadlines in nanoseconds, from [timing]."""

    heartbeat_ns: int = 20 * MS
    peer_timeout_ns: int = 150 * MS
    compare_timeout_ns: int = 100 * MS
    arm_timeout_ns: int = 200 * MS
    longest_epoch_ns: int = 60_000 * MS
    qmp_timeout_ns: int = 2_000 * MS
    checkpoint_timeout_ns: int = 10_000 * MS
    daemon_grace_ns: int = 10_000 * MS  # a pair whose VMs are well waits for a daemon's restart
    pacing: Pacing = Pacing()

    @property
    def prefer_primary_ns(self) -> int:
        """How much longer than the primary a secondary waits that still hears it."""
        return 2 * self.peer_timeout_ns

    @property
    def retry_ns(self) -> int:
        """Rest after a failed step."""
        return self.peer_timeout_ns


@dataclass(frozen=True, slots=True)
class Who:
    """Of the configuration: who we are."""

    vm: str
    host: str
    peer: str
    peer_link_address: str
    starts: bool  # role = primary: may start the VM from its image for the first time


@dataclass(frozen=True, slots=True)
class VmFacts:
    """Our QEMU."""

    instance: str
    role: VmRole
    alive: bool
    settled: Settled = Settled.CURRENT
    fit: bool = True
    clean: bool = True  # known to be in no pairing: no child, no migration
    endpoints: Endpoints | None = None
    colo_exit_ns: int | None = None  # COLO ended (or the yank that must end it was answered)
    off_at_s: int | None = None  # its guest powered it off (seconds since 1970, 0: not known when)


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """The other daemon, as heard."""

    state: PeerState | None
    link_age_ns: int
    management_age_ns: int
    away_since_ns: int | None = None  # its host lives, its daemon does not (or was told to end)

    @property
    def age_ns(self) -> int:
        """Since it was heard on any path."""
        return min(self.link_age_ns, self.management_age_ns)


@dataclass(frozen=True, slots=True)
class TurnFacts:
    """The checkpoints of this pairing, primary's side."""

    broken: str = ""
    loaded: Loaded | None = None
    triggered_ns: int = 0
    idle: bool = False  # the last one is loaded, and none is under way


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator asked for. `winner`: the instance that is to serve."""

    token: str
    at_ns: int
    winner: str
    here: bool = True  # asked of this daemon, not of the peer's
    withheld_ns: int | None = None  # when the winner's claim was known here
    overrides: int = 0  # a forced failover: the generation it was decided on
    starts: bool = False  # a VM that is off. Neither this nor `overrides`: a switchover


class FenceWhen(enum.Enum):
    """When the other host is turned off."""

    OFF = "off"
    BEFORE_SOLO = "before-solo"  # nothing leaves before it is off
    AFTER_SOLO = "after-solo"  # what leaves does not wait for it


@dataclass(frozen=True, slots=True)
class FenceFacts:
    """What is known of the fence of the present claim."""

    when: FenceWhen = FenceWhen.OFF
    reason: str = ""  # why the pair was left
    due: Fence | None = None  # after-solo: what is still to be run
    failures: int = 0
    error: str = ""  # of the last failure
    failed_ns: int = 0
    hopeless: bool = False  # the command says that it never can


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one decision may look at."""

    now_ns: int
    who: Who
    timing: Timing
    record: Record | None
    record_since_ns: int  # when this generation was first known here
    confirmed: bool  # the record is our own successful swap, not only a read
    pending: Record | None  # a swap whose outcome is not known
    read_error: str
    vm: VmFacts | None
    peer: PeerFacts
    turns: TurnFacts
    mode: Mode
    mode_since_ns: int
    plane_hears: bool  # full-sized beacons of the peer arrive
    public: bool  # GoPublic was done for this VM
    task: Task | None
    done: frozenset[type]  # kinds of steps done since the task began and the record changed
    failure: Failure | None
    yanked_ns: int | None
    offsets: int  # lasting sequence offsets that a new secondary has to have
    rest_until_ns: int  # no new pairing before
    last_read_ns: int
    fresh_vni: int
    fresh_instance: str
    wish: Wish | None = None
    paused: bool = False  # by an operator
    fence: FenceFacts = FenceFacts()


@dataclass(frozen=True, slots=True)
class Decision:
    """What should be now. `step` is run unless another one is under way."""

    state: State
    sentence: str
    mode: Mode | None = None  # None: leave it as the kernel has it
    step: Step | None = None
    task: Task | None = None
    pairing: Pairing | None = None
    turns: Turns = Turns.NONE
    ask: Reason | None = None
    cancels: bool = False  # a running pairing step has lost its purpose
    still: bool = False  # begin no checkpoint
    answer: Answer | None = None  # what became of the wish: it is forgotten
