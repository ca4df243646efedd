# SPDX-License-Identifier: GPL-2.0-only
"""More epochs, more VMs on one host, both cores at once."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from dataclasses import dataclass, replace
from functools import partial

from colo_ebpf.bench.kernel import listing, names
from colo_ebpf.bench.kernel.curves import curve, pair_ns
from colo_ebpf.bench.kernel.driver import BLOCK, Driver, Stream, in_turn, require_all, segment
from colo_ebpf.bench.results import Recorder
from colo_ebpf.datapath.spec import PlaneNic
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.bed import PORT, Bed, LoadedPlane
from colo_ebpf.model import Phase, VmRole

_FLOWS = 1024
_PAYLOAD = 1448


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it."""

    rounds: int
    seconds: float  # of traffic in one reading
    frames: int
    epochs: tuple[int, ...]  # per second
    vms: tuple[int, ...]


def run(recorder: Recorder, part: str, scale: Scale, bed: Bed) -> None:
    """All three, from inside the namespace."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    driver = Driver(bed)
    _epochs(recorder, part, scale, bed, driver)
    _cores(recorder, part, scale, bed, driver)
    driver.close()
    _vms(recorder, part, scale, bed)


def _streams(driver: Driver, flows: int, first: int = 0) -> tuple[Stream, Stream]:
    data = segment(_PAYLOAD)
    return (
        driver.stream("colo_cmp_svm", data, flows, first),
        driver.stream("colo_cmp_pvm", data, flows, first),
    )


def _own_ns(driver: Driver) -> float:
    data = segment(_PAYLOAD)
    return sum(driver.own_ns(maker, data) for maker in ("bench_link", "bench_run"))


# -- epochs --


def _epochs(recorder: Recorder, part: str, scale: Scale, bed: Bed, driver: Driver) -> None:
    points: dict[float, list[float]] = {}
    own = _own_ns(driver)
    for rate in scale.epochs:
        recorder.say(f"{part}: {rate} epochs per second")
        points[rate] = []
        for _ in range(scale.rounds):
            bed.empty()
            bed.pair()
            driver.tag = 1
            driver.connect(_FLOWS)
            svm, pvm = _streams(driver, _FLOWS)
            work = partial(_turning, bed, driver, (svm, pvm), rate, scale.seconds)
            points[rate].append(pair_ns(driver, work, pvm) - own)
            passed = bed.count("cmp-pvm", "pass", "verified") - _FLOWS
            require_all(bed, passed, pvm.made, f"{rate} epochs per second")
    driver.tag = 1
    curve(recorder, part, names.EPOCHS, names.both(_PAYLOAD), points)


def _turning(
    bed: Bed, driver: Driver, streams: tuple[Stream, Stream], rate: int, seconds: float
) -> None:
    """Traffic, and so many proven turns a second: each connection is anchored anew at its next
    frame. Nothing is held at a turn, so that none has to be flushed."""
    start = now = time.monotonic()
    epoch = 1
    while now < start + seconds:
        if rate and now - start >= epoch / rate:
            bed.plane.set_turn(epoch, Phase.TURNING)
            epoch += 1
            bed.plane.set_turn(epoch, Phase.OPEN)
            driver.tag = epoch & 0xFFFF
            for stream in streams:
                stream.retag()
        in_turn(*streams, BLOCK)
        now = time.monotonic()
    if rate and epoch == 1 and rate * seconds >= 2:
        raise BenchError(f"{rate} epochs per second: there was no turn")


# -- cores --


def _cores(recorder: Recorder, part: str, scale: Scale, bed: Bed, driver: Driver) -> None:
    """Two connections on two CPUs, against one on one: frames per second of wall clock."""
    cpus = sorted(os.sched_getaffinity(0) | set(range(os.cpu_count() or 1)))[:2]
    if len(cpus) < 2:
        why = "this machine has one CPU"
        recorder.add(part, names.CORES, names.OURS, "times one", values=(), note=why)
        return
    recorder.say(f"{part}: both cores")
    found = []
    for _ in range(scale.rounds):
        bed.empty()
        bed.pair()
        driver.connect(2)
        pairs = [_streams(driver, 1, number) for number in range(2)]
        alone = _on_cpu(cpus[1], pairs[0], scale.seconds)
        found.append(_together(cpus, pairs, scale.seconds, bed) / alone)
    note = "two connections of one VM, 2.0 is twice as much"
    recorder.add(part, names.CORES, names.OURS, "times one", values=found, note=note)


def _on_cpu(cpu: int, streams: tuple[Stream, Stream], seconds: float) -> float:
    """Frames of the PVM per second that the kernel spent on them, with all between the runs."""
    os.sched_setaffinity(0, {cpu})
    made, spent = streams[1].made, sum(stream.wall_ns for stream in streams)
    in_turn(*streams, 1 << 40, until=time.monotonic() + seconds)
    return (streams[1].made - made) / (sum(stream.wall_ns for stream in streams) - spent) * 1e9


def _together(
    cpus: list[int], pairs: list[tuple[Stream, Stream]], seconds: float, bed: Bed
) -> float:
    """Both at once: the second in a process of its own, for Python runs on one CPU at a time."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.write(writing, b"!")
            rate = _on_cpu(cpus[0], pairs[1], seconds * 1.2)
            os.write(writing, struct.pack("=dQ", rate, pairs[1][1].made))
        os._exit(0)
    os.close(writing)
    try:
        os.read(reading, 1)
        rate = _on_cpu(cpus[1], pairs[0], seconds)
        answer = os.read(reading, 16)
    finally:
        os.waitpid(child, 0)
        os.close(reading)
    if len(answer) != 16:
        raise BenchError("the process on the other CPU failed")
    other, made = struct.unpack("=dQ", answer)
    passed, sent = bed.count("cmp-pvm", "pass", "verified") - 2, made + pairs[0][1].made
    require_all(bed, passed, sent, "both CPUs at once")
    return rate + float(other)


# -- VMs --


def _vms(recorder: Recorder, part: str, scale: Scale, bed: Bed) -> None:
    """Each with programs, maps, tap and link device of its own; traffic goes to them in turn."""
    planes: list[LoadedPlane] = [bed]
    points: dict[float, list[float]] = {}
    load: list[float] = []
    memory: list[float] = []
    try:
        for count in scale.vms:
            while len(planes) < count:
                recorder.say(f"{part}: VM {len(planes) + 1} of {scale.vms[-1]} is loaded")
                start = time.monotonic()
                planes.append(_one_more(bed, len(planes)))
                load.append(time.monotonic() - start)
                fresh = listing.maps_of(planes[-1].plane)
                memory.append(sum(one.bytes for one in fresh) / 2**20)
            recorder.say(f"{part}: {count} VMs")
            points[count] = _in_all(planes, scale)
    finally:
        for plane in planes[1:]:
            plane.close()
    curve(recorder, part, names.VMS, names.both(_PAYLOAD), points)
    recorder.add(part, names.LOAD_VM, names.OURS, "s", values=load)
    recorder.add(part, names.MEMORY_VM, names.OURS, "MiB", values=memory)


def _one_more(bed: Bed, number: int) -> LoadedPlane:
    nic = PlaneNic(f"vm{number}", bed.spec.nics[0].bridge, bed.spec.mtu)
    spec = replace(
        bed.spec,
        vm=f"t{number}",
        nics=(nic,),
        link_device=f"vx{number}",
        vxlan_port=PORT + number,
    )
    return LoadedPlane(spec, VmRole.PRIMARY)


def _in_all(planes: list[LoadedPlane], scale: Scale) -> list[float]:
    drivers = [Driver(plane) for plane in planes]
    pairs = []
    for plane, driver in zip(planes, drivers, strict=True):
        plane.empty()
        plane.pair()
        driver.connect(1)
        pairs.append(_streams(driver, 1))
    own = _own_ns(drivers[0])
    found = []
    for _ in range(scale.rounds):
        spent = made = 0.0
        for _ in range(0, scale.frames, BLOCK * len(planes)):
            for driver, (svm, pvm) in zip(drivers, pairs, strict=True):
                work = partial(in_turn, svm, pvm, BLOCK)
                spent += BLOCK * pair_ns(driver, work, pvm)
                made += BLOCK
        found.append(spent / made - own)
    for plane, driver, (_, pvm) in zip(planes, drivers, pairs, strict=True):
        passed = plane.count("cmp-pvm", "pass", "verified") - 1
        require_all(plane, passed, pvm.made, f"{len(planes)} VMs")
        driver.close()
    return found
