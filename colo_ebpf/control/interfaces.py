# SPDX-License-Identifier: GPL-2.0-only
"""What the control plane needs of the world, as interfaces.

The daemon is wired with the real parts (`datapath.plane`, `qemu.vm`, an arbiter); tests wire it
with toys. Nothing in `control/` that decides imports an implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from colo_ebpf.model import (
    Counter,
    Endpoints,
    FlushReport,
    HeldReport,
    Lack,
    Lateness,
    LentImage,
    Mode,
    OverlayUse,
    Pairing,
    Phase,
    PlaneEvent,
    Progress,
    Settled,
    Turn,
    VmEvent,
    VmEventKind,
    VmRole,
    Waiting,
)

if TYPE_CHECKING:
    from colo_ebpf.control.checkpoint.primary import Command
    from colo_ebpf.control.checkpoint.secondary import Note
    from colo_ebpf.control.checkpoint.watch import Work
    from colo_ebpf.control.decision.actions import Step
    from colo_ebpf.control.decision.record import Record
    from colo_ebpf.control.peer.pause import Pause

PEER_NODE = "nbd"  # how block nodes of the secondary's export are called, before the disk's number


class Plane(Protocol):
    """The data plane of one VM on this host. Cheap calls are synchronous map accesses."""

    def set_mode(self, mode: Mode) -> None:
        """What the programs do with frames from now on."""

    def mode(self) -> Mode:
        """What they do, as the kernel has it."""

    def set_turn(self, epoch: int, phase: Phase) -> None:
        """Write the turn cell in one 64-bit store."""

    def turn(self) -> Turn:
        """Read the turn cell as the kernel has it (the plane may have set TURNING itself)."""

    def set_pairing(self, pairing: Pairing | None) -> None:
        """Accept and send link frames of this pairing only; None: no link."""

    def keep_offsets(self, epoch: int) -> None:
        """At a takeover: the sequence offsets learnt in `epoch` become lasting."""

    async def fold_offsets(self) -> list[bytes]:
        """Before a new pairing: kept offsets become lasting; returns all that are (opaque)."""

    def learn_offsets(self, entries: list[bytes]) -> None:
        """A new secondary takes over the primary's lasting offsets."""

    async def forget(self) -> None:
        """Before a fresh VM starts here: nothing of the one before is left."""

    def flush(self) -> FlushReport:
        """Emit what may leave now: past epochs, verified heads, everything when solo."""

    def repeat(self) -> int:
        """Solo, on the bridge: what the SVM said last leaves again, its answer may have been lost
        with the primary. Returns how many frames."""

    def held(self) -> HeldReport:
        """What is held: frames, bytes, slots, and the boot time of the oldest."""

    def held_frames(self) -> int:
        """How many are held."""

    def waiting(self) -> Waiting:
        """What is held, and since when."""

    def held_ages(self) -> tuple[int, int]:
        """Of the frames that are held (of some of them, if they are many): how many, and the sum of
        the boot times they came."""

    def held_ever(self) -> int:
        """Frames that were held, ever."""

    def compared_frames(self) -> int:
        """Frames of the PVM that have left because the SVM produced the same, ever."""

    def lateness(self) -> Lateness:
        """How late the SVM was, ever."""

    def loaded(self, at_ns: int) -> None:
        """The SVM has loaded a checkpoint: for a while its lateness is counted apart."""

    def rearm_held(self) -> None:
        """Ask for a HELD event at the next frame that is held."""

    @property
    def beats_alone(self) -> bool:
        """What `beat` begins goes on for a while by itself."""

    def beat(self, now_ns: int) -> None:
        """Full-sized beacons go over the link, one in a heartbeat; called in every beat."""

    def reap(self, now_ns: int) -> None:
        """Forget a few connections that have ended; called in every beat."""

    def link_heard_ns(self) -> int:
        """Boot time of the last frame of the peer's plane (0: never)."""

    def subscribe(self, callback: Callable[[PlaneEvent], None]) -> None:
        """Deliver ring buffer events on the running loop."""

    def counters(self) -> list[Counter]:
        """Packets and bytes by program, verdict and reason, summed over the CPUs."""

    def mismatches(self) -> list[PlaneEvent]:
        """The last mismatches, oldest first."""

    def live(self) -> dict[str, int]:
        """The words the programs keep (held frames, store head, ...), by name."""

    async def quicken(self, peer_address: str) -> None:
        """`quickack` on the route to the peer: a down link forgets it."""

    def serves(self) -> None:
        """The VM is adopted, and serves: its tap belongs on the bridge."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Call back on the running loop whenever the kernel tells that devices of ours, or what
        hangs on them, were changed."""

    def unharmed(self) -> bool:
        """Cheap: nobody has taken off a program, nor a pin."""

    async def mend(self) -> tuple[list[Lack], list[Lack]]:
        """Put back what others have removed: what that was, and what is lacking still. Raises
        DatapathError."""

    async def take_role(self, role: VmRole) -> None:
        """Attach the programs of this side, before its VM starts or its pairing begins."""

    async def join_bridge(self) -> None:
        """Put the VM's tap on the client-side bridge."""

    async def leave_bridge(self) -> None:
        """Take the VM's tap off the client-side bridge."""


class Past(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of a VM so far."""

    disk: str = ""  # why its disk failed, if it was started as a primary, or has `left` COLO since
    left: bool = False  # it was a secondary, and is none any more
    peer_disk: bool = False  # a write to the secondary's image failed since that was made
    off_at_s: int | None = None  # its guest ended it, in seconds since 1970
    panicked: bool = False
    waits: bool = False  # it stands until a request to a disk can be done
    spoilt: bool = False  # a replica has such a request, which no load takes away


def waits(event: VmEvent) -> bool:
    """A disk error that the guest has not seen: the VM stands, the request is done again when it
    runs. Of a shared disk: the secondary may not have taken what was there before."""
    return event.kind is VmEventKind.BLOCK_ERROR and event.data.get("action") == "stop"


def is_peer_node(name: str) -> bool:
    """A node of the secondary's export, of whichever disk."""
    return name.startswith(PEER_NODE) and name[len(PEER_NODE) :].isdigit()


def of_peer(event: VmEvent) -> bool:
    """A disk error that names no node counts as the peer's: it ends the pair, which is safe."""
    node = event.data.get("node-name")
    return node is None or is_peer_node(str(node))


class Vm(Protocol):
    """One supervised QEMU. Every coroutine raises QmpError/VmError and has a deadline."""

    @property
    def instance(self) -> str:
        """`<host>/<16 hex>`, carried in QEMU's -name."""

    @property
    def role(self) -> VmRole:
        """What it was started as."""

    @property
    def pid(self) -> int:
        """Of its process."""

    @property
    def alive(self) -> bool:
        """The process exists (pidfd)."""

    def subscribe(self, callback: Callable[[VmEvent], None]) -> None:
        """Call back for each event, in order, on the running loop."""

    async def cont(self) -> None:
        """QMP `cont`."""

    async def stop(self) -> None:
        """QMP `stop`: its processors stand."""

    async def running(self) -> bool:
        """query-status says running. Events read before its reply were delivered before this
        returns, so that a RESUME between a STOP and the reply cannot be missed."""

    async def powered_off(self) -> bool:
        """Its guest ended it: QEMU keeps it, standing."""

    async def listen(self, *, known: bool = False) -> Endpoints:
        """Secondary: NBD export and incoming migration are open. `known`: the images have been this
        VM's before, and are worth to be compared."""

    async def synchronise(self, to: Endpoints, progress: Callable[[Progress], None]) -> None:
        """Primary: copy the disk to the secondary's export live, then replicate every write."""

    async def enter_colo(self, to: Endpoints, progress: Callable[[Progress], None]) -> None:
        """Primary: migrate with x-colo; returns when both VMs run under COLO."""

    async def trigger_checkpoint(self) -> None:
        """Primary: QEMU takes a checkpoint at once; STOP and RESUME tell of it."""

    async def leave_pair(self) -> None:
        """Primary, before or during pairing: drop the child and the migration, run on."""

    async def yank(self) -> None:
        """Out of band: shut the sockets to the peer (migration first, then the block node)."""

    async def continue_alone(self) -> None:
        """Primary failover, after the token: yank, drop the child, x-colo-lost-heartbeat."""

    async def take_over(self) -> None:
        """Secondary failover, after the token: yank, nbd-server-remove, x-colo-lost-heartbeat."""

    async def announce(self) -> None:
        """announce-self: the bridges learn where the VM is now."""

    def look(self) -> bool:
        """To be called a few times a second: does it hang? The events HUNG and ANSWERS tell.
        Returns whether there is work for the loop."""

    def work(self) -> Work:
        """Secondary: what its processors have done so far."""

    def last_words(self) -> str:
        """The end of what QEMU has written to its log."""

    def settled(self) -> Settled:
        """Secondary: from the COLO trace file and the events read so far."""

    def loads(self) -> int:
        """Secondary: `vmstate-loaded` counted in the trace file."""

    def peer_loads(self) -> int:
        """Primary: how often its secondary has said `vmstate-loaded`, by the trace file. QEMU
        writes it down before it lets the VM run again, so before RESUME."""

    async def overlays_committed(self) -> bool:
        """After a takeover: the overlays are merged into the image and flushed."""

    def overlay_use(self) -> tuple[OverlayUse, ...]:
        """Secondary: how full its overlays are, disk by disk."""

    async def failed_requests(self) -> int:
        """Disk requests of the guest that failed since QEMU was started."""

    def past(self) -> Past:
        """What became of it so far, whether or not a daemon was there."""

    async def lend_images(self) -> tuple[LentImage, ...]:
        """Primary of a pair: its images can be read until `take_back_images`."""

    async def take_back_images(self) -> None:
        """The end of `lend_images`; whoever reads is cut off."""

    async def kill(self) -> None:
        """End the process (SIGKILL) and wait until it is gone."""


class Machine(Protocol):
    """Starts and finds QEMUs of the configured VM on this host."""

    async def start(self, role: VmRole, instance: str) -> Vm:
        """Start QEMU as this instance. Raises VmError with QEMU's last words."""

    async def adopt(self) -> Vm | None:
        """The QEMU left running by an earlier daemon, if there is one; else None."""


class Arbiter(Protocol):
    """Keeps one record per VM; compare-and-swap by generation. Raises ArbiterError."""

    async def read(self) -> Record:
        """The newest record. A missing one is an ArbiterError."""

    async def swap(self, old: Record, new: Record) -> Record:
        """Write `new` if `old` is still the newest; return the newest record (its nonce tells
        who won). Raises SwapUnknownError when that could not be learnt."""

    async def check(self) -> None:
        """It answers, and would take a new record. ArbiterError: why not."""


class Effects(Protocol):
    """What a core needs done that takes time. Nothing here blocks or raises."""

    def start_step(self, step: Step) -> None:
        """Begin a step; `Core.step_done` will be called once."""

    def cancel_step(self) -> None:
        """Give up the pairing step under way; `step_done` is still called."""

    def command(self, vm: Vm, command: Command) -> None:
        """Run a command of a checkpoint; `Core.command_done` will be called once."""

    def publish(self, copies: int) -> None:
        """Send `Core.my_state` now."""

    def keep_note(self, note: Note) -> None:
        """Keep what the secondary's turn must remember over a restart."""

    def keep_pause(self, pause: Pause) -> None:
        """Keep it over restarts, as well as can be."""

    def token(self) -> str:
        """16 fresh hexadecimal digits."""
