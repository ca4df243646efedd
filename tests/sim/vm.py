# SPDX-License-Identifier: GPL-2.0-only
"""Toy VMs and the COLO session between two of them.

A VM's state is a number: how much of what clients were told without a replica it remembers. A
load copies it. The order of events is QEMU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from colo_ebpf.control.checkpoint.watch import Work
from colo_ebpf.control.interfaces import Past
from colo_ebpf.control.qemu.event_log import follow
from colo_ebpf.model import OverlayUse, Settled, VmEvent, VmEventKind, VmRole

if TYPE_CHECKING:
    from tests.sim.answers import Answers
    from tests.sim.host import Host

MS = 1_000_000
_POLL_NS = 7 * MS


class ToyVm:
    """What the core sees of a VM."""

    def __init__(self, host: Host, role: VmRole, instance: str, state: int) -> None:
        self.host, self.role, self.instance, self.state = host, role, instance, state
        self.pid = 1
        self.alive = True  # its process exists
        self.killed = False  # it is being taken down, and does nothing any more
        self.complete = role is VmRole.PRIMARY  # a secondary is nothing before COLO
        self.replica = role is VmRole.SECONDARY  # until it is told to take over
        self.off = False  # its guest ended it, and nothing has made it run since
        self.ended = False  # its guest ended it, and no load has undone that
        self.stopped = self.loading = self.received = self.new = self.exited = False
        self.loaded = 0
        self.told = 0  # loads that its secondary has said
        self.sick = self.ever_sick = False  # a request to its disk failed since the last load
        self.session: Session | None = None
        self.answers: Answers | None = None
        self._past = Past()

    @property
    def acts(self) -> bool:
        """It is there, and nobody has killed it."""
        return self.alive and not self.killed

    def settled(self) -> Settled:
        """As the trace says."""
        if not self.loading:
            return Settled.NEW if self.new else Settled.CURRENT
        if not self.exited:
            return Settled.OPEN
        return Settled.BROKEN if self.received else Settled.OLD

    def loads(self) -> int:
        """Checkpoints loaded."""
        return self.loaded

    def peer_loads(self) -> int:
        """Of its secondary."""
        return self.told

    def work(self) -> Work:
        """Idle, unless clients ask something of it."""
        return self.answers.work() if self.answers else Work((0,))

    def overlay_use(self) -> tuple[OverlayUse, ...]:
        """Never full."""
        return ()

    def fail_disk(self) -> None:
        """A request fails; the daemon hears of it, if there is one. To a shared disk it is done
        again, but by a replica under COLO: there no load takes it away. A VM that stands has no
        requests: QEMU waited for them."""
        if self.host.world.shares_disk:
            self.sick = self.sick or (self.replica and not self.exited and not self.stopped)
            self.waits_for_disk()
        else:
            self.sick = self.ever_sick = True
            self.emit(VmEventKind.BLOCK_ERROR)

    def waits_for_disk(self) -> None:
        """A request to a shared disk cannot be done: the guest sees no error, and stands."""
        if self.acts and not self.stopped:
            self.emit(VmEventKind.BLOCK_ERROR, action="stop")
            self.stopped = True
            self.emit(VmEventKind.STOP)

    def last_words(self) -> str:
        """In its log."""
        return "last words"

    def past(self) -> Past:
        """As QEMU's own log of its events says."""
        return self._past

    def emit(self, kind: VmEventKind, **data: object) -> None:
        """An event reaches the daemon, if there is one."""
        if kind is VmEventKind.COLO_EXIT:
            self.exited = True
        event = VmEvent(kind, self.host.now_ns, data)
        as_logged = {"event": kind.value, "data": data, "timestamp": {"seconds": 1}}
        self._past = follow(self._past, [as_logged])
        self.host.deliver(lambda: self.host.vm_event(self, event))

    def power_off(self) -> None:
        """By its guest. QEMU keeps it."""
        if self.acts and not self.off:
            self.off = self.ended = True
            self.emit(VmEventKind.SHUTDOWN, guest=True, reason="guest-shutdown", at_s=1)
            if not self.stopped:
                self.stopped = True
                self.emit(VmEventKind.STOP)

    def reboot(self) -> None:
        """By its guest: it goes on, from its disk."""
        if self.acts and not self.stopped:
            self.emit(VmEventKind.RESET, guest=True, reason="guest-reset")

    def stands(self) -> None:
        """For a checkpoint: an event only if it ran."""
        ran, self.stopped, self.loading = not self.stopped, True, True
        self.received = self.new = False
        if ran:
            self.emit(VmEventKind.STOP)

    def runs(self) -> None:
        """Whatever it stood for."""
        self.stopped = self.loading = self.off = False
        self.emit(VmEventKind.RESUME)

    def quit(self) -> None:
        """QMP's `quit`, or SIGTERM: what it still writes no image takes."""
        self.emit(VmEventKind.SHUTDOWN, guest=False, reason="host-qmp-quit")
        if not self.replica and self.session is not None:
            self.session.end()
            self.emit(VmEventKind.DISK_BAD, **{"node-name": "nbd1", "type": "write"})
            self.emit(VmEventKind.DISK_BAD, **{"node-name": "#block114", "type": "write"})
        self.die()

    def die(self) -> None:
        """SIGKILL. Its sockets close before its process is gone."""
        if not self.acts:
            return
        self.killed = True
        if self.session is not None:
            self.session.end()
        self.emit(VmEventKind.MONITOR_LOST)
        self.host.world.after(self.host.world.delay_ns(0.1, 20), self._gone)

    def _gone(self) -> None:
        self.alive = False
        self.emit(VmEventKind.GONE)


class Session:
    """Two VMs under COLO. A cut link stalls it; a yank or a death ends it."""

    def __init__(self, primary: ToyVm, secondary: ToyVm) -> None:
        self.primary, self.secondary = primary, secondary
        self.world = primary.host.world
        self.alive = True
        self._busy = False
        self._again = False
        primary.session = secondary.session = self
        for vm in (primary, secondary):
            vm.exited = False
        secondary.complete, secondary.state = True, primary.state

    def trigger(self) -> None:
        """A checkpoint, unless one runs: then once more (QEMU keeps one request)."""
        if self._busy:
            self._again = True
            return
        self._busy = True
        self._advance(self._checkpoint())

    def _advance(self, steps: Iterator[Callable[[], None]]) -> None:
        step = next(steps, None)
        if step is None:
            self._busy = False
            if self._again:
                self._again = False
                self.trigger()
            return
        self.world.after(self.world.delay_ns(0.5, 6), lambda: self._try(step, steps))

    def _try(self, step: Callable[[], None], steps: Iterator[Callable[[], None]]) -> None:
        if not self.alive:
            self._busy = False
            return
        if not self.world.link_up():
            self.world.after(_POLL_NS, lambda: self._try(step, steps))
            return
        step()
        self._advance(steps)

    def _checkpoint(self) -> Iterator[Callable[[], None]]:
        yield self._secondary_stops
        yield self._primary_stops
        if self.world.tells_passes:
            yield lambda: self.primary.emit(VmEventKind.MIGRATION_PASS)
        yield self._received
        yield self._loads
        yield self._primary_resumes

    def _secondary_stops(self) -> None:
        self.secondary.stands()

    def _primary_stops(self) -> None:
        self.primary.stands()

    def _received(self) -> None:
        self.secondary.received = True

    def _loads(self) -> None:
        if self.world.bad_loads and self.world.random.random() < self.world.bad_loads:
            self.world.lost_vms += 1
            self._ends()
            return
        self._load()

    def _load(self) -> None:
        s = self.secondary
        s.state, s.new, s.ended = self.primary.state, True, False
        s.sick = s.sick and self.world.shares_disk
        s.runs()
        s.loaded += 1
        if s.answers is not None:
            s.answers.loaded()

    def _primary_resumes(self) -> None:
        self.primary.told += 1
        self.primary.runs()

    def end(self) -> None:
        """The sockets are gone; each side learns of it when it can. What the secondary has received
        it loads all the same."""
        s = self.secondary
        if self.alive and s.acts and s.loading and s.received and not s.new:
            self._load()
        self._ends()

    def _ends(self) -> None:
        if not self.alive:
            return
        self.alive = False
        for vm in (self.secondary, self.primary):
            vm.session = None
            self._tell(vm)

    def _tell(self, vm: ToyVm) -> None:
        def tell() -> None:
            if vm.acts and not self.world.link_up() and not vm.host.yanked:
                self.world.after(_POLL_NS, tell)
            elif vm.acts and not vm.exited:
                side = "secondary" if vm is self.secondary else "primary"
                vm.emit(VmEventKind.COLO_EXIT, mode=side, reason="error")

        self.world.after(self.world.delay_ns(0.1, 5), tell)
