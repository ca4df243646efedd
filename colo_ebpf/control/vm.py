# SPDX-License-Identifier: GPL-2.0-only
"""One QEMU under COLO: port `Vm`. The recipes are QEMU's own (docs/system/qemu-colo), in QMP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from typing import Any

from colo_ebpf.clock import boot_ns
from colo_ebpf.control import cmdline, trace, vcpus
from colo_ebpf.control.cmdline import VmSpec
from colo_ebpf.control.disks import Disks
from colo_ebpf.control.eventlog import EventLog, Past
from colo_ebpf.control.lineage import Lineage
from colo_ebpf.control.qmp import Monitors
from colo_ebpf.control.ran import Ran
from colo_ebpf.control.summed import Summed
from colo_ebpf.control.taps import Taps
from colo_ebpf.control.watch import Work
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
_BANDWIDTH_BYTES = 1 << 40
_CUT_EVERY = 8  # looks: its files grow slowly
_IDLE_LOOKS = 2  # in a row: QEMU with an idle guest sleeps for longer than one now and then
_POLL_S = 0.02  # of a migration or a state that has no event


class Qemu:
    """A QEMU process and what the control plane asks of it."""

    def __init__(self, spec: VmSpec, role: VmRole, instance: str, pid: int, taps: Taps) -> None:
        self._spec = spec
        self._role = role
        self._instance = instance
        self._pid = pid
        self._taps = taps
        self._pidfd = os.pidfd_open(pid)
        self._alive = True
        self._gone = asyncio.Event()
        self._callbacks: list[Callable[[VmEvent], None]] = []
        self._waiters: list[tuple[VmEventKind, asyncio.Future[VmEvent]]] = []
        self._colo_exited = False
        path = cmdline.trace_path(spec, instance)
        self._trace = Summed(path, trace.TraceState(), trace.follow)
        self._ran = Ran(pid)
        self._asking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._threads: tuple[int, ...] = (pid,)
        self._hung, self._looks, self._idle_looks = False, 0, 0
        self._qmp = Monitors(instance, spec.qmp_timeout_ms, self._on_event)
        self._disks = Disks(spec, instance, pid, self._qmp)
        self._lineage = Lineage.of(spec)
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
        self._alive = False
        self._asking.cancel()
        self._gone.set()
        self._on_event(VmEvent(VmEventKind.GONE, boot_ns()))

    async def _expect(self, kind: VmEventKind, timeout_ms: int, what: str) -> VmEvent:
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

    async def connect(self) -> None:
        """Open both monitors; from now on `look` may ask whether anybody is there."""
        await self._qmp.connect(cmdline.monitor_path(self._spec), cmdline.oob_path(self._spec))
        self._threads = await self._worker_threads()
        self._asking = asyncio.create_task(self._ask())

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
        """The process is the instance its pid file names."""
        reply = await self._qmp.run("query-name")
        if reply.get("name") != f"{self._spec.name}@{self._instance}":
            raise QmpError(f"{self._instance}: its name is {reply.get('name')!r}")

    async def require_colo(self) -> None:
        """QEMU was built with COLO; asked before anything depends on it."""
        names = {c["capability"] for c in await self._qmp.run("query-migrate-capabilities")}
        if "x-colo" not in names:
            raise QmpError(
                f"{self._spec.qemu} has no x-colo capability; install a QEMU built with COLO"
            )
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
        """Writing the delay in COLO state starts a checkpoint at once."""
        await self._qmp.run("migrate-set-parameters", x_checkpoint_delay=NEVER_MS)

    # -- pairing -------------------------------------------------------------------------

    async def listen(self) -> Endpoints:
        """Secondary: export the local image and wait for the migration."""
        spec = self._spec
        await self._capabilities("x-colo")
        await self._disks.offer()
        uri = f"tcp:{spec.link_address}:{spec.migration_port}"
        await self._qmp.run("migrate-incoming", uri=uri)
        replicas = self._lineage.replicas()
        return Endpoints(spec.link_address, spec.nbd_port, spec.migration_port, replicas)

    async def synchronise(self, to: Endpoints, progress: Callable[[Progress], None]) -> None:
        """Primary: copy the disks to the secondary's exports live, then replicate every write."""
        await self._disks.synchronise(to, progress)

    async def enter_colo(self, to: Endpoints, progress: Callable[[Progress], None]) -> None:
        """Primary: migrate with x-colo; back when both VMs run under COLO."""
        await self._capabilities("x-colo")
        await self._qmp.run(
            "migrate-set-parameters",
            x_checkpoint_delay=NEVER_MS,
            max_bandwidth=_BANDWIDTH_BYTES,
        )
        self._colo_exited = False
        await self._qmp.run("migrate", uri=f"tcp:{to.address}:{to.migration_port}")
        try:
            async with asyncio.timeout(self._spec.start_timeout_ms / 1000):
                while (info := await self._qmp.run("query-migrate")).get("status") != "colo":
                    if info.get("status") in ("failed", "completed", "cancelled"):
                        raise VmError(
                            f"{self._instance}: migration {info['status']}: "
                            f"{info.get('error-desc', 'the peer did not enter COLO')}"
                        )
                    ram = info.get("ram", {})
                    progress(Progress("memory", ram.get("transferred", 0), ram.get("total", 0)))
                    await asyncio.sleep(_POLL_S)
                while not await self.running():
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as e:
            raise VmError(f"{self._instance}: migration: not in COLO in time") from e

    async def leave_pair(self) -> None:
        """Primary, while pairing: drop what ties it to the peer, whatever there is, and run on."""
        await self.yank()
        await self._disks.cancel_copy()
        await self._try("migrate_cancel")
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
        await self._try("x-colo-lost-heartbeat")
        await self._disks.forget_children()
        await self._until_running()

    async def take_over(self) -> None:
        """Secondary, after the token: no write of the old primary may come in any more."""
        await self.yank()
        if self.settled() is Settled.OPEN:
            limit = self._spec.checkpoint_timeout_ms
            await self._expect(VmEventKind.COLO_EXIT, limit, "take over inside a load")
        if self.settled() is Settled.BROKEN:
            raise VmError(f"{self._instance}: new memory on the old disk: it never runs again")
        await self._withdraw()
        self._lineage.end()  # from here on the VM writes to its images itself
        await self._try("x-colo-lost-heartbeat")
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

    async def _try(self, command: str, **arguments: Any) -> None:
        try:
            await self._qmp.run(command, **arguments)
        except QmpError as e:
            _log.info("failover step not needed or already done: %s", e)

    async def _until_running(self) -> None:
        """Or until its guest has powered it off: that is the guest's own."""
        try:
            async with asyncio.timeout(self._spec.checkpoint_timeout_ms / 1000):
                while not await self.running():
                    status = (await self._qmp.run("query-status"))["status"]
                    if status == "shutdown":
                        return
                    if status == "paused":
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
        return trace.settled(self._follow_trace(), self._colo_exited)

    def loads(self) -> int:
        """Secondary: checkpoints loaded since it was started."""
        return self._follow_trace().loads

    def _follow_trace(self) -> trace.TraceState:
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
                os.kill(self._pid, signal.SIGKILL)
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
        self._follow_trace()
        self._trace.close()
        self._log.close()
        self._ran.close()
        await self._qmp.close()
