# SPDX-License-Identifier: GPL-2.0-only
"""The shipped data planes in front of the same guests, as the daemon sets them up.

A thread per host does what the daemon does for its data plane in every heartbeat, at the same
priority. No checkpoint can be taken of a namespace: the control plane's own rules say when one
would have been, and that is counted.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from colo_ebpf.bench import names
from colo_ebpf.bench.lanes.lane import HOST, PVM, SVM, Lane
from colo_ebpf.bench.lanes.wires import CLIENT, ETH, guest_cpus
from colo_ebpf.clock import boot_ns
from colo_ebpf.config.schema import CACHE_DIR, Checkpoint, Datapath, Timing
from colo_ebpf.control import settings
from colo_ebpf.control.checkpoint.primary import Action, Limits, PrimaryCheckpoints
from colo_ebpf.control.core.checkpoints import Checkpoints
from colo_ebpf.control.decision.actions import Side
from colo_ebpf.control.interfaces import Effects, Vm
from colo_ebpf.datapath.bpf.loader import Sizes, frame_bytes, hold_slots
from colo_ebpf.datapath.net import bridges, namespaces, netdev, ownership
from colo_ebpf.datapath.plane import DataPlane
from colo_ebpf.datapath.spec import PlaneNic, PlaneSpec
from colo_ebpf.errors import BenchError
from colo_ebpf.lab import mounts
from colo_ebpf.lab.topology import (
    BRIDGE,
    GUEST_MTU,
    LINK,
    LINK_DEVICE,
    LINK_MTU,
    PREFIX_LENGTH,
    TAP,
    UPLINK,
)
from colo_ebpf.model import Mode, Pairing, Phase, VmRole

_VM, _VNI, _EPOCH = "bench", 9, 1
_SECOND_HOST = "host-2"
_LINK_ADDRESSES = {HOST: "10.77.1.1", _SECOND_HOST: "10.77.1.2"}
_TIMING = Timing()
_REALTIME_PRIORITY = 10  # the daemon's
_PATIENCE_S = 10.0
_MS = 1_000_000


@dataclass
class _Requests(PrimaryCheckpoints):
    """Counts the checkpoints that would have been taken, at most one in each heartbeat.

    One that answers several causes counts as one, for all of them.
    """

    requests: Counter[str] = field(default_factory=Counter)

    def look(self, now_ns: int, *, taken: int, armed: int, listening: bool) -> list[Action]:
        if self._asked:
            self.requests[" and ".join(sorted(cause.value for cause in self._asked))] += 1
            self._asked = {}
        return []


def _watch(plane: DataPlane) -> tuple[Checkpoints, _Requests]:
    """The daemon's rules for what the primary's plane says, without a VM to stop."""
    requests = _Requests(Limits(0, 0, 0))
    timing = settings.deadlines(_TIMING, Checkpoint())
    nobody = object()
    checkpoints = Checkpoints(timing, plane, cast(Effects, nobody), None, boot_ns())
    checkpoints.primary = requests
    checkpoints.take_side(Side.PRIMARY, cast(Vm, nobody), False, boot_ns())
    return checkpoints, requests


class _Beat:
    """What one host's daemon does for its data plane, every heartbeat while awake."""

    def __init__(self, namespace: str, plane: DataPlane, watch: Checkpoints | None) -> None:
        self._plane, self._watch = plane, watch
        self._loop: asyncio.AbstractEventLoop
        self._awake: asyncio.Event
        self._ended = False
        self._ready, self._beaten = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=namespaces.run_in, args=(namespace, lambda: asyncio.run(self._run()))
        )
        self._thread.start()
        self._await(self._ready)

    def _await(self, event: threading.Event) -> None:
        if not event.wait(_PATIENCE_S):
            raise BenchError("a data plane's heartbeat does not start")

    async def _run(self) -> None:
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(_REALTIME_PRIORITY))  # this thread only
        self._loop, self._awake = asyncio.get_running_loop(), asyncio.Event()
        watch = self._watch
        if watch is not None:
            self._plane.subscribe(lambda event: watch.plane_event(event, boot_ns()))
        self._ready.set()
        due_s = self._loop.time()
        while True:
            await self._awake.wait()
            if self._ended:
                return
            now_ns = boot_ns()
            self._plane.beat(now_ns)
            self._plane.reap(now_ns)
            if watch is not None:
                watch.look(None, True, now_ns)
            self._beaten.set()
            due_s = max(due_s + _TIMING.heartbeat_ms / 1e3, self._loop.time())
            await asyncio.sleep(due_s - self._loop.time())

    def wake(self) -> None:
        """From now on; returns when the first beacon was sent."""
        self._beaten.clear()
        self._loop.call_soon_threadsafe(self._awake.set)
        self._await(self._beaten)

    def rest(self) -> None:
        """No more, until woken."""
        self._loop.call_soon_threadsafe(self._awake.clear)

    def end(self) -> None:
        """For good."""
        self._ended = True
        self._loop.call_soon_threadsafe(self._awake.set)
        self._thread.join()


class OurLane(Lane):
    """Two hosts, a link between them; each guest behind a veth in place of its tap."""

    name = names.OURS

    def build(self) -> None:
        wires = self.wires
        for host in (HOST, _SECOND_HOST):
            wires.add(host)
        wires.inside(_SECOND_HOST, lambda: bridges.create(BRIDGE))
        namespaces.create_veth(LINK, LINK, wires.name(HOST), wires.name(_SECOND_HOST), LINK_MTU)
        self._wire()
        self.planes = {host: self._plane(host) for host, _ in self._sides()}
        self._attach()
        self._pair()

    def _sides(self) -> tuple[tuple[str, str], ...]:
        return (HOST, PVM), (_SECOND_HOST, SVM)

    def _wire(self) -> None:
        """The client and the guests."""
        wires = self.wires
        for what in (CLIENT, PVM, SVM):
            wires.add(what)
        wires.add_client(HOST)
        for (host, guest), cpu in zip(self._sides(), guest_cpus(), strict=True):
            namespaces.create_veth(TAP, ETH, wires.name(host), wires.name(guest), GUEST_MTU)
            wires.inside(host, lambda: ownership.mark(TAP, _VM))  # it stands for the tap
            wires.finish_guest(guest, cpu)
            wires.serve(guest, cpu)

    def _attach(self) -> None:
        """The planes to what stands for the taps."""
        roles = {PVM: VmRole.PRIMARY, SVM: VmRole.SECONDARY}

        async def attach(plane: DataPlane, role: VmRole) -> None:
            await plane.prepare()
            await plane.take_role(role)
            if role is VmRole.PRIMARY:
                await plane.join_bridge()

        for host, guest in self._sides():
            plane, role = self.planes[host], roles[guest]
            self.wires.inside(host, partial(asyncio.run, attach(plane, role)))

    def _spec(self, host: str) -> PlaneSpec:
        wires, sizes = self.wires, Datapath()
        frame = frame_bytes(GUEST_MTU)
        return PlaneSpec(
            vm=_VM,
            bpffs=wires.directory / f"bpf-{self.name}-{host}",
            cache=Path(CACHE_DIR),
            nics=(PlaneNic(TAP, BRIDGE, GUEST_MTU),),
            link_device=LINK_DEVICE,
            underlay=LINK,
            vxlan_port=4789,
            link_address=_LINK_ADDRESSES[host],
            link_timeout_ms=_TIMING.link_timeout_ms,
            notes_last_ms=Checkpoint().longest_wait_ms,
            heartbeat_ms=_TIMING.heartbeat_ms,
            sizes=Sizes(
                sizes.flows, hold_slots(sizes.hold_mib, frame), sizes.datagram_buckets, frame
            ),
        )

    def _plane(self, host: str) -> DataPlane:
        wires, spec = self.wires, self._spec(host)
        mounts.mount_bpf(spec.bpffs)
        wires.stack.callback(mounts.unmount, spec.bpffs)
        wires.inside(host, lambda: netdev.add_address(LINK, spec.link_address, PREFIX_LENGTH))
        plane = wires.inside(host, lambda: DataPlane.open(spec))
        wires.stack.callback(plane.close)
        return plane

    def _pair(self) -> None:
        primary, secondary = self.planes[HOST], self.planes[_SECOND_HOST]
        primary.set_pairing(Pairing(_VNI, _LINK_ADDRESSES[_SECOND_HOST]))
        secondary.set_pairing(Pairing(_VNI, _LINK_ADDRESSES[HOST]))
        for plane in (primary, secondary):
            plane.set_turn(_EPOCH, Phase.OPEN)
        watch, self._requests = _watch(primary)
        primary.set_mode(Mode.PRIMARY)
        secondary.set_mode(Mode.SECONDARY)
        self._beats = [
            _Beat(self.wires.name(HOST), primary, watch),
            _Beat(self.wires.name(_SECOND_HOST), secondary, None),
        ]
        for beat in self._beats:
            self.wires.stack.callback(beat.end)

    def wake(self) -> None:
        for beat in self._beats:
            beat.wake()

    def rest(self) -> None:
        """Not before what is held for good has aged: the daemon would ask for a checkpoint."""
        plane = self.planes[HOST]
        deadline = time.monotonic() + 2 * _TIMING.compare_timeout_ms / 1e3
        while plane.live()["held"] and time.monotonic() < deadline:
            time.sleep(_TIMING.heartbeat_ms / 1e3)
        for beat in self._beats:
            beat.rest()

    def requests(self) -> Counter[str]:
        return self._requests.requests.copy()

    def renew(self) -> None:
        """Fresh guests, and planes that know nothing of those before.

        Their connections have to go with them: a server that ends leaves its kernel resending what
        was not acknowledged, on a connection the planes no longer know.
        """
        wires = self.wires
        for host, device in ((HOST, UPLINK), (HOST, TAP), (_SECOND_HOST, TAP)):
            wires.inside(host, partial(netdev.remove, device))
        for what in (CLIENT, PVM, SVM):
            wires.remove(what)
        for plane in self.planes.values():
            asyncio.run(plane.forget())
        self._wire()
        self._attach()
        self._await()
