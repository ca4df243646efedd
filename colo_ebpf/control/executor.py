# SPDX-License-Identifier: GPL-2.0-only
"""What each step of a decision does to the world. One runs at a time; all are idempotent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from colo_ebpf.control.decision import actions
from colo_ebpf.control.decision.actions import Step
from colo_ebpf.control.decision.record import Record
from colo_ebpf.control.interfaces import Arbiter, Machine, Plane, Vm
from colo_ebpf.control.state.files import GenerationFloor
from colo_ebpf.control.state.inconsistent import InconsistentImages
from colo_ebpf.errors import VmError
from colo_ebpf.model import Endpoints, Progress, VmRole


class Steps:
    """Carries out steps on this host's parts. `current` gives the VM in charge."""

    def __init__(
        self,
        plane: Plane,
        machine: Machine,
        arbiter: Arbiter,
        *,
        floor: GenerationFloor,
        inconsistent: InconsistentImages,
        peer_address: str,
        current: Callable[[], Vm | None],
        started: Callable[[Vm, Endpoints | None], None],
        folded: Callable[[list[bytes]], None],
        fence: Callable[[actions.Fence], Awaitable[None]],
        reserve: Callable[[], Awaitable[None]],
        copies: bool = True,
    ) -> None:
        """`copies`: a replica's images are written over while it is made."""
        self._plane, self._machine = plane, machine
        self._arbiter, self._floor = arbiter, floor
        self._inconsistent = inconsistent
        self._peer_address = peer_address
        self._current, self._started, self._folded = current, started, folded
        self._fence, self._reserve, self._copies = fence, reserve, copies
        self._known_images = floor.value > 0  # a VM of this name ran on these hosts before
        self.progress: Progress | None = None

    async def run(self, step: Step) -> Record | None:
        """Do it. Read and Swap return the newest record. Raises ColoError."""
        self.progress = None
        match step:
            case actions.Read():
                return self._seen(await self._arbiter.read())
            case actions.Swap(old, new):
                return self._seen(await self._arbiter.swap(old, new))
            case actions.StartVm(role, instance):
                await self._start(role, instance)
            case actions.EndVm(instance):
                await self._end(instance)
            case actions.Fence():
                await self._fence(step)
            case actions.Reserve():
                await self._reserve()
            case _:
                await self._with_vm(step, self._vm())
        return None

    async def _with_vm(self, step: Step, vm: Vm) -> None:
        match step:
            case actions.GoPublic():
                await self._plane.join_bridge()
                self._plane.repeat()
                await vm.announce()
            case actions.Synchronise(to):
                self._folded(await self._plane.fold_offsets())
                await self._plane.take_role(VmRole.PRIMARY)
                await self._plane.quicken(self._peer_address)
                await vm.synchronise(to, self._on_progress)
            case actions.EnterColo(to):
                await vm.enter_colo(to, self._on_progress)
            case actions.Committed():
                if not await vm.overlays_committed():
                    raise VmError("the overlays are still being merged into the image")
            case actions.LeavePair():
                await vm.leave_pair()
            case actions.Yank():
                await vm.yank()
            case actions.ContinueAlone():
                await vm.continue_alone()
            case actions.TakeOver():
                await vm.take_over()

    def _seen(self, record: Record) -> Record:
        self._floor.check(record)
        self._floor.note(record)
        self._inconsistent.learn(record)
        return record

    def _vm(self) -> Vm:
        vm = self._current()
        if vm is None:
            raise VmError("there is no VM here")
        return vm

    async def _start(self, role: VmRole, instance: str) -> None:
        """The filters are attached before QEMU can send a frame."""
        if role is VmRole.PRIMARY:
            self._inconsistent.check()
        before = self._current()
        if before is not None and not before.alive:
            await before.kill()  # it ended by itself: what it still holds here is let go of
        await self._plane.leave_bridge()
        await self._plane.forget()
        await self._plane.take_role(role)
        vm = await self._machine.start(role, instance)
        try:
            endpoints = None
            if role is VmRole.PRIMARY:
                await vm.cont()
            else:
                await self._plane.quicken(self._peer_address)
                if self._copies:
                    self._inconsistent.begin(instance)
                endpoints = await vm.listen(known=self._known_images)
        except BaseException:
            await vm.kill()
            raise
        self._known_images = True
        self._started(vm, endpoints)

    async def _end(self, instance: str) -> None:
        vm = self._current()
        if vm is not None and vm.instance == instance:
            await vm.kill()
        await self._plane.leave_bridge()

    def _on_progress(self, progress: Progress) -> None:
        self.progress = progress
