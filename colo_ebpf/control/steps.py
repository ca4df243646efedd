# SPDX-License-Identifier: GPL-2.0-only
"""What each step of a decision does to the world. One runs at a time; all are idempotent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from colo_ebpf.control import facts
from colo_ebpf.control.facts import Step
from colo_ebpf.control.ports import Arbiter, Machine, Plane, Vm
from colo_ebpf.control.record import GenerationFloor, Record
from colo_ebpf.control.unfinished import Unfinished
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
        unfinished: Unfinished,
        peer_address: str,
        current: Callable[[], Vm | None],
        started: Callable[[Vm, Endpoints | None], None],
        folded: Callable[[list[bytes]], None],
        fence: Callable[[facts.Fence], Awaitable[None]],
    ) -> None:
        self._plane, self._machine = plane, machine
        self._arbiter, self._floor = arbiter, floor
        self._unfinished = unfinished
        self._peer_address = peer_address
        self._current, self._started, self._folded = current, started, folded
        self._fence = fence
        self.progress: Progress | None = None

    async def run(self, step: Step) -> Record | None:
        """Do it. Read and Swap return the newest record. Raises ColoError."""
        self.progress = None
        match step:
            case facts.Read():
                return self._seen(await self._arbiter.read())
            case facts.Swap(old, new):
                return self._seen(await self._arbiter.swap(old, new))
            case facts.StartVm(role, instance):
                await self._start(role, instance)
            case facts.EndVm(instance):
                await self._end(instance)
            case facts.Fence():
                await self._fence(step)
            case _:
                await self._with_vm(step, self._vm())
        return None

    async def _with_vm(self, step: Step, vm: Vm) -> None:
        match step:
            case facts.GoPublic():
                await self._plane.join_bridge()
                self._plane.repeat()
                await vm.announce()
            case facts.Synchronise(to):
                self._folded(await self._plane.fold_offsets())
                await self._plane.take_role(VmRole.PRIMARY)
                await self._plane.quicken(self._peer_address)
                await vm.synchronise(to, self._on_progress)
            case facts.EnterColo(to):
                await vm.enter_colo(to, self._on_progress)
            case facts.Committed():
                if not await vm.overlays_committed():
                    raise VmError("the overlays are still being merged into the image")
            case facts.LeavePair():
                await vm.leave_pair()
            case facts.Yank():
                await vm.yank()
            case facts.ContinueAlone():
                await vm.continue_alone()
            case facts.TakeOver():
                await vm.take_over()

    def _seen(self, record: Record) -> Record:
        self._floor.check(record)
        self._floor.note(record)
        self._unfinished.learn(record)
        return record

    def _vm(self) -> Vm:
        vm = self._current()
        if vm is None:
            raise VmError("there is no VM here")
        return vm

    async def _start(self, role: VmRole, instance: str) -> None:
        """The filters are attached before QEMU can send a frame."""
        if role is VmRole.PRIMARY:
            self._unfinished.check()
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
                self._unfinished.begin(instance)
                endpoints = await vm.listen()
        except BaseException:
            await vm.kill()
            raise
        self._started(vm, endpoints)

    async def _end(self, instance: str) -> None:
        vm = self._current()
        if vm is not None and vm.instance == instance:
            await vm.kill()
        await self._plane.leave_bridge()

    def _on_progress(self, progress: Progress) -> None:
        self.progress = progress
