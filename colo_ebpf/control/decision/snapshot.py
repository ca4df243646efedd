# SPDX-License-Identifier: GPL-2.0-only
"""What a decision looks at: frozen values, and what they say of each other."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from colo_ebpf.control.checkpoint.pace import Pacing
from colo_ebpf.control.checkpoint.primary import Loaded
from colo_ebpf.control.decision.actions import Fence, Step, Task
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.peer.state import PeerState
from colo_ebpf.model import Endpoints, Mode, Settled, VmHealth, VmRole

MS = 1_000_000
NO_VM = (VmHealth.NONE, VmHealth.GONE, VmHealth.BROKEN)


@dataclass(frozen=True, slots=True)
class Failure:
    """The last step failed."""

    step: Step
    error: str
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """In nanoseconds, from [timing], which has their defaults (`settings.deadlines`)."""

    heartbeat_ns: int
    peer_timeout_ns: int
    compare_timeout_ns: int
    arm_timeout_ns: int
    longest_epoch_ns: int
    qmp_timeout_ns: int
    checkpoint_timeout_ns: int
    daemon_grace_ns: int  # a pair whose VMs are well waits for a daemon's restart
    pacing: Pacing

    @property
    def prefer_primary_ns(self) -> int:
        """How much longer than the primary a secondary waits that still hears it."""
        return 2 * self.peer_timeout_ns

    @property
    def rest_ns(self) -> int:
        """From one beat of a pair at rest to the next."""
        return 3 * self.heartbeat_ns

    @property
    def absent_ns(self) -> int:
        """A daemon that has not run for longer did not rest."""
        return self.rest_ns + self.heartbeat_ns

    @property
    def long_silence_ns(self) -> int:
        """60 % of the way from the silence of a pair at rest to the timeout."""
        return self.rest_ns + (self.peer_timeout_ns - self.rest_ns) * 6 // 10

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
    shares_disk: bool = False  # a disk of the VM is one and the same on both hosts
    reserves: bool = False  # the shared disks, while it may write to them
    compatibility: Mapping[str, str] = field(default_factory=dict)  # see `own_compatibility`


@dataclass(frozen=True, slots=True)
class VmFacts:
    """Our QEMU."""

    instance: str
    role: VmRole
    alive: bool
    settled: Settled = Settled.CURRENT
    fit: bool = True
    closing: bool = False  # its monitor is closed, and its process not gone yet: it is not fit
    clean: bool = True  # known to be in no pairing: no child, no migration, no replica
    endpoints: Endpoints | None = None
    colo_exit_ns: int | None = None  # COLO ended (or the yank that must end it was answered)
    off_at_s: int | None = None  # its guest powered it off (seconds since 1970, 0: not known when)
    waits_ns: int | None = None  # it stands until a request to its disk can be done: since when


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """The other daemon, as heard."""

    state: PeerState | None
    link_age_ns: int
    management_age_ns: int
    away_since_ns: int | None = None  # its host lives, its daemon does not (or was told to end)
    bare_ns: int = 0  # so long the link has carried its heartbeats and no frame of its plane
    unheard_ns: int = 0  # so long it has said that it hears no frame of the plane here

    @property
    def cut_ns(self) -> int:
        """So long the link has not carried all that a pair needs, both ways."""
        return max(self.link_age_ns, self.bare_ns, self.unheard_ns)

    @property
    def age_ns(self) -> int:
        """Since it was heard on any path."""
        return min(self.link_age_ns, self.management_age_ns)


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """The checkpoints of this pairing, primary's side."""

    broken: str = ""
    loaded: Loaded | None = None
    triggered_ns: int = 0
    idle: bool = False  # the last one is loaded, and none is under way
    refused_ns: int | None = None  # when the disk of the last secondary did not take a write


@dataclass(frozen=True, slots=True)
class Request:
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
    timing: Deadlines
    record: Record | None
    record_since_ns: int  # when this generation was first known here
    confirmed: bool  # the record is our own successful swap, not only a read
    pending: Record | None  # a swap whose outcome is not known
    read_error: str
    arbiter_error: str  # why a look at the arbiter failed, or showed that it could not be written
    vm: VmFacts | None
    peer: PeerFacts
    checkpoints: CheckpointFacts
    mode: Mode
    mode_since_ns: int
    plane_hears: bool  # frames of the peer's plane arrive
    public: bool  # GoPublic was done for this VM
    task: Task | None
    done: frozenset[type]  # kinds of steps done since the task began and the record changed
    failure: Failure | None
    yanked_ns: int | None
    offsets: int  # lasting sequence offsets that a new secondary has to have
    rest_until_ns: int  # no new pairing before
    rest_why: str  # what the last attempt to pair came to nothing for
    last_read_ns: int
    fresh_vni: int
    fresh_instance: str
    request: Request | None = None
    paused: bool = False  # by an operator
    fence: FenceFacts = FenceFacts()
    lacks: str = ""  # what is wrong with this host's devices

    @property
    def peer_heard(self) -> bool:
        """The other daemon, lately, on any path."""
        return self.peer.age_ns <= self.timing.peer_timeout_ns

    @property
    def link_heard(self) -> bool:
        """The other daemon, lately, over the link."""
        return self.peer.link_age_ns <= self.timing.peer_timeout_ns

    @property
    def link_cut(self) -> bool:
        """The link has not carried all that a pair needs, both ways, for longer than allowed."""
        return self.peer.cut_ns > self.timing.peer_timeout_ns

    def peer_vm_gone(self, instance: str) -> bool:
        """The peer itself has said so of this VM of its; it holds for this instance for ever."""
        state = self.peer.state
        return state is not None and (state.instance != instance or state.health in NO_VM)

    def own_vm(self, instance: str) -> VmFacts | None:
        """Our VM if it is this instance, alive and whole."""
        vm = self.vm
        if vm is None or not vm.alive or vm.instance != instance or vm.settled is Settled.BROKEN:
            return None
        return vm
