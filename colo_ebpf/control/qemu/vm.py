# SPDX-License-Identifier: GPL-2.0-only
"""One QEMU under COLO: `interfaces.Vm`. The recipes are QEMU's (docs/system/qemu-colo), in QMP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable

from colo_ebpf import addresses
from colo_ebpf.clock import boot_ns
from colo_ebpf.control.checkpoint.watch import Work
from colo_ebpf.control.interfaces import Past
from colo_ebpf.control.qemu import cmdline, colo_trace, error_log, peersocket, support, vcpus
from colo_ebpf.control.qemu.block import Disks
from colo_ebpf.control.qemu.bounded_log import BoundedLog
from colo_ebpf.control.qemu.cmdline import VmSpec
from colo_ebpf.control.qemu.copy_progress import MemoryAdvance
from colo_ebpf.control.qemu.event_log import EventLog
from colo_ebpf.control.qemu.log_tail import LogTail
from colo_ebpf.control.qemu.monitor import Monitors
from colo_ebpf.control.qemu.schedstat import Ran
from colo_ebpf.control.qemu.starter import Starter
from colo_ebpf.control.qemu.taps import Taps
from colo_ebpf.control.state.images import DataGeneration
from colo_ebpf.errors import QmpError, VmError
from colo_ebpf.model import (
    Endpoints,
    LentImage,
    OverlayUse,
    Progress,
    Settled,
    VmEvent,
    VmEventKind,
    VmRole,
)

_log = logging.getLogger(__name__)

NEVER_MS = 4294967295  # x-checkpoint-delay: QEMU's own timer is put out of the way
_MIGRATION = "migration"  # a socket that QEMU is given
_BANDWIDTH_BYTES = 1 << 40
_CUT_EVERY = 8  # looks: its files grow slowly
_IDLE_LOOKS = 2  # in a row: QEMU with an idle guest sleeps for longer than one now and then
_POLL_S = 0.02  # of a migration or a state that has no event


def data_generation_of(spec: VmSpec) -> DataGeneration:
    """Of this VM's images."""
    return DataGeneration(
        cmdline.data_generation_path(spec), tuple(disk.path for disk in spec.replicated)
    )


class Qemu:
    """A QEMU process and what the control plane asks of it."""

    def __init__(
        self,
        spec: VmSpec,
        role: VmRole,
        instance: str,
        pid: int,
        taps: Taps,
        *,
        starter: Starter,
        log_from: int = 0,
    ) -> None:
        self._spec = spec
        self._role = role
        self._instance = instance
        self._pid = pid
        self._taps = taps
        self._log_from = log_from  # in the log of all QEMUs: what stands there is of others
        self._pidfd = os.pidfd_open(pid)
        self._alive = True
        self._gone = asyncio.Event()
        self._callbacks: list[Callable[[VmEvent], None]] = []
        self._waiters: list[tuple[VmEventKind, asyncio.Future[VmEvent]]] = []
        self._colo_exited = False
        path = cmdline.trace_path(spec, instance)
        self._trace = LogTail(path, colo_trace.TraceState(), colo_trace.follow)
        self._ran = Ran(pid)
        self._asking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receiving = self._asking
        self._threads: tuple[int, ...] = (pid,)
        self._hung, self._looks, self._idle_looks = False, 0, 0
        self._qmp = Monitors(instance, spec.qmp_timeout_ms, self._on_event)
        self._disks = Disks(spec, instance, pid, self._qmp, starter)
        logs = (cmdline.console_log_path(spec), cmdline.log_path(spec))
        self._bounded = tuple(BoundedLog(path) for path in logs)
        self._data_generation = data_generation_of(spec)
        self._log = EventLog(cmdline.events_path(spec, instance))
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)

    # -- identity and events -------------------------------------------------------------

    @property
    def instance(self) -> str:
        """`<host>/<16 hex>`."""
        return self._instance

    @property
    def role(self) -> VmRole:
        """How it was started."""
        return self._role

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._pid

    @property
    def alive(self) -> bool:
        """The process exists."""
        return self._alive

    def subscribe(self, callback: Callable[[VmEvent], None]) -> None:
        """Call back for each event, in order."""
        self._callbacks.append(callback)

    def _on_event(self, event: VmEvent) -> None:
        if event.kind is VmEventKind.COLO_EXIT:
            self._colo_exited = True
        for kind, future in self._waiters:
            if kind is event.kind and not future.done():
                future.set_result(event)
        for callback in self._callbacks:
            callback(event)

    def _on_exit(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        with contextlib.suppress(ChildProcessError):  # of the daemon before, or of the starter
            os.waitpid(self._pid, os.WNOHANG)
        self._alive = False
        self._asking.cancel()
        self._receiving.cancel()  # nobody is there for a migration, and the port is the next VM's
        self._gone.set()
        self._on_event(VmEvent(VmEventKind.GONE, boot_ns()))
        for kind, future in self._waiters:
            if not future.done():
                ended = f"{self._instance}: it ended while {kind.value} was waited for"
                future.set_exception(VmError(ended))

    async def _expect(self, kind: VmEventKind, timeout_ms: int, what: str) -> VmEvent:
        """VmError if it does not come in time, or cannot come any more."""
        future: asyncio.Future[VmEvent] = asyncio.get_running_loop().create_future()
        self._waiters.append((kind, future))
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await future
        except TimeoutError as e:
            raise VmError(
                f"{self._instance}: {what}: no {kind.value} within {timeout_ms} ms"
            ) from e
        finally:
            self._waiters.remove((kind, future))

    async def connect(self, timeout_ms: int | None = None) -> None:
        """Open both monitors; from now on `look` may ask whether anybody is there."""
        paths = cmdline.monitor_path(self._spec), cmdline.oob_path(self._spec)
        await self._qmp.connect(*paths, timeout_ms=timeout_ms)
        self._threads = await self._worker_threads()
        self._asking = asyncio.create_task(self._ask())

    async def ended(self, within_s: float) -> bool:
        """The process is gone, or will be by then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._gone.wait()
        return not self._alive

    async def _worker_threads(self) -> tuple[int, ...]:
        """Of its vCPUs, which share one under TCG now and then, and the main loop, which sends."""
        cpus = await self._qmp.run("query-cpus-fast")
        return (self._pid, *sorted({int(cpu["thread-id"]) for cpu in cpus if "thread-id" in cpu}))

    def look(self) -> bool:
        """A few times a second: does it hang? HUNG and ANSWERS tell of the change.

        Whether there is work for the loop: one that has not run for some looks is asked. A process
        that is stopped does not answer out of band either; one whose main loop waits for a peer
        does.
        """
        for log in self._bounded:
            log.cut()
        if not self._alive or not self._asking.done():
            return False
        self._looks += 1
        if self._looks % _CUT_EVERY == 0:
            self._log.cut()
            self._trace.cut()
        self._idle_looks = 0 if self._ran.since_last_look() else self._idle_looks + 1
        if self._idle_looks < _IDLE_LOOKS and not self._hung:
            return False
        self._asking = asyncio.create_task(self._ask())
        return True

    async def _ask(self) -> None:
        hung = False
        try:
            await self._qmp.run_oob("query-yank", self._spec.hang_timeout_ms)
        except QmpError as e:
            _log.info("%s", e)
            hung = True
        if hung is not self._hung and self._alive:
            self._hung = hung
            self._on_event(VmEvent(VmEventKind.HUNG if hung else VmEventKind.ANSWERS, boot_ns()))

    def work(self) -> Work:
        """What its vCPUs, and the thread that sends for them, have done so far."""
        return vcpus.look(self._pid, self._threads)

    async def check_name(self) -> None:
        """The process is the instance its pid file names. Raises QmpError if it is another."""
        reply = await self._qmp.run("query-name")
        if reply.get("name") != f"{self._spec.name}@{self._instance}":
            raise QmpError(f"{self._instance}: its name is {reply.get('name')!r}")

    async def require_colo(self) -> None:
        """QEMU can carry a pair, and this machine; asked before anything depends on it."""
        await support.require_colo(self._qmp.run, support.use_of(self._spec))
        await self._capabilities("events")

    async def _capabilities(self, *names: str) -> None:
        states = [{"capability": name, "state": True} for name in names]
        await self._qmp.run("migrate-set-capabilities", capabilities=states)

    # -- running state -------------------------------------------------------------------

    async def cont(self) -> None:
        """Run. Never under a checkpoint: QEMU before 11.0 accepts it there and loses the VM."""
        await self._qmp.run("cont")

    async def stop(self) -> None:
        """Pause."""
        await self._qmp.run("stop")

    async def running(self) -> bool:
        """query-status says running; events sent before the reply have been delivered."""
        return bool((await self._qmp.run("query-status"))["running"])

    async def powered_off(self) -> bool:
        """Its guest ended it, and QEMU keeps it."""
        return bool((await self._qmp.run("query-status"))["status"] == "shutdown")

    async def trigger_checkpoint(self) -> None:
        """Writing the delay in COLO state starts a checkpoint at once. With a shared disk the VM
        stands before: the epoch of the disk begins there. COLO runs it on."""
        if self._spec.shared_disks:
            await self._qmp.run("stop")
            await self._disks.begin_epoch()
        await self._qmp.run("migrate-set-parameters", x_checkpoint_delay=NEVER_MS)

    # -- pairing -------------------------------------------------------------------------

    async def listen(self, *, known: bool = False) -> Endpoints:
        """Secondary: export the local image and wait for the migration. `known`: `Disks.offer`."""
        spec = self._spec
        await support.enable_colo(self._qmp.run)
        await self._disks.offer(known=known)
        if not self._alive:
            raise VmError(f"{self._instance}: it ended while it was made ready to be a replica")
        where = (spec.link_address, spec.migration_port)
        listening = peersocket.listen(*where, spec.peer_address, spec.link_device)
        self._receiving = asyncio.create_task(self._receive(listening))
        replicas = self._data_generation.replicas()
        return Endpoints(spec.link_address, spec.nbd_port, spec.migration_port, replicas)

    async def _receive(self, listening: socket.socket) -> None:
        """The one connection that the migration is; after it nobody listens there any more."""
        with listening:
            connection, _ = await asyncio.get_running_loop().sock_accept(listening)
        with connection:
            await self._disks.digests.end()
            try:
                await self._qmp.give(_MIGRATION, connection.fileno())
                await self._qmp.run("migrate-incoming", uri=f"fd:{_MIGRATION}")
            except QmpError as e:
                _log.warning("%s: a migration came and cannot be received: %s", self._instance, e)

    async def synchronise(self, to: Endpoints, progress: Callable[[Progress], None]) -> None:
        """Primary: copy the disks to the secondary's exports live, then replicate every write."""
        await self._disks.synchronise(to, progress)

    async def enter_colo(self, to: Endpoints, progress: Callable[[Progress], None]) -> None:
        """Primary: migrate with x-colo; back when both VMs run under COLO."""
        await support.enable_colo(self._qmp.run)
        await self._qmp.run(
            "migrate-set-parameters",
            x_checkpoint_delay=NEVER_MS,
            max_bandwidth=self._spec.memory_rate_bytes or _BANDWIDTH_BYTES,
        )
        self._colo_exited = False
        uri = f"tcp:{addresses.with_port(to.address, to.migration_port)}"
        await self._qmp.run("migrate", uri=uri)
        await self._until_in_colo(progress)
        if self._spec.memory_rate_bytes:  # checkpoints are not for the limit
            await self._qmp.run("migrate-set-parameters", max_bandwidth=_BANDWIDTH_BYTES)

    async def _until_in_colo(self, progress: Callable[[Progress], None]) -> None:
        memory = MemoryAdvance(self._spec.start_timeout_ms, boot_ns())
        while (info := await self._qmp.run("query-migrate")).get("status") != "colo":
            if info.get("status") in ("failed", "completed", "cancelled"):
                raise VmError(
                    f"{self._instance}: migration {info['status']}: "
                    f"{info.get('error-desc', 'the peer did not enter COLO')}"
                )
            if why := memory.look(info.get("ram", {}), boot_ns()):
                raise VmError(f"{self._instance}: migration: {why}")
            progress(memory.progress)
            await asyncio.sleep(_POLL_S)
        try:
            async with asyncio.timeout(self._spec.start_timeout_ms / 1000):
                while not await self.running():
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as e:
            raise VmError(f"{self._instance}: migration: not in COLO in time") from e

    async def leave_pair(self) -> None:
        """Primary, while pairing: drop what ties it to the peer, whatever there is, and run on.

        Under COLO only a failover ends the migration: QEMU 10 takes `migrate_cancel`
        there, after which the migration neither ends nor fails over.
        """
        await self.yank()
        await self._disks.cancel_copy()
        if (await self._qmp.run("query-migrate")).get("status") != "colo":
            await self._qmp.ensure("migrate_cancel")
        await self.continue_alone()

    # -- failover ------------------------------------------------------------------------

    async def yank(self) -> None:
        """Shut the sockets to the peer: migration first, so that nothing is loaded any more."""
        instances = await self._qmp.run_oob("query-yank")
        ordered = [i for i in instances if i["type"] == "migration"]
        ordered += [i for i in instances if i["type"] == "block-node"]
        for one in ordered:
            with contextlib.suppress(QmpError):  # gone meanwhile
                await self._qmp.run_oob("yank", instances=[one])

    async def continue_alone(self) -> None:
        """Primary, after the token. Each step may have been done before."""
        await self.yank()
        await self._disks.leave_children()
        await self._qmp.ensure("x-colo-lost-heartbeat")
        await self._disks.forget_children()
        await self._until_running()

    async def take_over(self) -> None:
        """Secondary, after the token: no write of the old primary may come in any more.

        Raises VmError if its memory is new and its disk is old, or, of a shared disk, the other way
        round: until the first checkpoint it reads what the primary's VM has written since.
        """
        if self._spec.shared_disks and not self.loads():
            raise VmError(f"{self._instance}: no checkpoint yet: it may have read what is to come")
        await self.yank()
        if self.settled() is Settled.OPEN:
            limit = self._spec.checkpoint_timeout_ms
            await self._expect(VmEventKind.COLO_EXIT, limit, "take over inside a load")
        if self.settled() is Settled.BROKEN:
            raise VmError(f"{self._instance}: new memory on the old disk: it never runs again")
        await self._withdraw()
        self._data_generation.end()  # from here on the VM writes to its images itself
        await self._qmp.ensure("x-colo-lost-heartbeat")
        await self._until_running()

    async def _withdraw(self) -> None:
        """Until no export is left: what an old primary has sent is written, or never will be."""
        await self._disks.withdraw()
        try:
            async with asyncio.timeout(self._spec.checkpoint_timeout_ms / 1000):
                while not await self._disks.withdrawn():
                    with contextlib.suppress(VmError):  # it may have said so before
                        await self._expect(
                            VmEventKind.EXPORT_GONE, int(1000 * _POLL_S), "take back the disks"
                        )
        except TimeoutError as e:
            raise VmError(f"{self._instance}: its disks are still exported") from e

    async def _until_running(self) -> None:
        """Or until its guest has powered it off: that is the guest's own."""
        try:
            async with asyncio.timeout(self._spec.checkpoint_timeout_ms / 1000):
                while not await self.running():
                    status = (await self._qmp.run("query-status"))["status"]
                    if status == "shutdown":
                        return
                    if status in ("paused", "io-error"):
                        await self.cont()
                    with contextlib.suppress(VmError):  # it may have said so before
                        await self._expect(VmEventKind.RESUME, int(1000 * _POLL_S), "run")
        except TimeoutError as e:
            raise VmError(f"{self._instance}: does not run after the failover") from e

    async def announce(self) -> None:
        """The bridges learn where the VM is now."""
        await self._qmp.run("announce-self", initial=50, max=200, rounds=4, step=50)

    def settled(self) -> Settled:
        """Secondary: is its state whole, and which is it?"""
        return colo_trace.settled(self._follow_trace(), self._colo_exited)

    def loads(self) -> int:
        """Secondary: checkpoints loaded since it was started."""
        return self._follow_trace().loads

    def peer_loads(self) -> int:
        """Primary: checkpoints that the secondary has said it has loaded."""
        return self._follow_trace().told

    def _follow_trace(self) -> colo_trace.TraceState:
        """In every beat: the file stays open until the VM is ended."""
        if not self._alive and self._trace.closed:
            return self._trace.last
        try:
            return self._trace.read()
        except OSError:
            return self._trace.last

    async def overlays_committed(self) -> bool:
        """After a takeover: the replication driver has merged its overlays into the image. Then
        there is time for what a takeover does not wait for: the port of the exports is closed."""
        if not await self._disks.committed():
            return False
        try:
            await self._disks.close_server()
        except VmError as e:
            _log.warning("%s; nothing is behind it any more", e)
        return True

    def overlay_use(self) -> tuple[OverlayUse, ...]:
        """Secondary: how full its overlays are."""
        return self._disks.overlay_use()

    async def failed_requests(self) -> int:
        """Disk requests of the guest that failed, ever."""
        return await self._disks.failed_requests()

    def past(self) -> Past:
        """What became of it, whether or not a daemon was there."""
        return self._log.read()

    def tell_missed(self) -> None:
        """Secondary: that COLO ended while no daemon listened is an event like any other."""
        if self.past().left:
            self._on_event(VmEvent(VmEventKind.COLO_EXIT, boot_ns()))

    def last_words(self) -> str:
        """The end of what it has written to its log."""
        return error_log.tail(cmdline.log_path(self._spec), self._log_from)

    # -- a look at the disks ---------------------------------------------------------------

    async def lend_images(self) -> tuple[LentImage, ...]:
        """Primary: its images can be read until `take_back_images`, beside what it does."""
        return await self._disks.lend(cmdline.lending_path(self._spec))

    async def take_back_images(self) -> None:
        """Whoever reads them is cut off."""
        await self._disks.take_back(cmdline.lending_path(self._spec))

    async def kill(self) -> None:
        """End the process and wait until it is gone. VmError if the kernel does not let go of it:
        it may still write to the images."""
        if self._alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            limit_ms = self._spec.checkpoint_timeout_ms
            try:
                async with asyncio.timeout(limit_ms / 1000):
                    await self._gone.wait()
            except TimeoutError as e:
                raise VmError(
                    f"{self._instance}: pid {self._pid} is killed and not gone after {limit_ms} ms:"
                    " it waits inside the kernel, for a disk perhaps (ps shows state D)"
                ) from e
        self._taps.close()
        self._asking.cancel()
        self._receiving.cancel()
        self._disks.digests.discard()
        self._follow_trace()
        self._trace.close()
        self._log.close()
        self._ran.close()
        await self._qmp.close()
