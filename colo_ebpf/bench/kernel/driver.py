# SPDX-License-Identifier: GPL-2.0-only
"""Hands frames to the shipped programs inside the kernel, and reads what each cost.

`bpf/bench/bench.c` makes every frame a fresh one: no system call and no copy lies between two
frames. What the maker itself costs is measured with no program behind it, and taken off.
"""

from __future__ import annotations

import ctypes
import enum
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from colo_ebpf.datapath.bpf import abi, loader
from colo_ebpf.datapath.bpf.syscalls import RawMap, Runner, program_info, run_time_kept
from colo_ebpf.datapath.net import netdev
from colo_ebpf.errors import BenchError
from colo_ebpf.lab import bed, frames

_AT_ONCE = 4096
BLOCK = 32  # frames of one VM before the other's turn: half of what a flow remembers
CLIENT_ISN = 5000
ISN = 1000
_MAKERS = ("bench_run", "bench_link")
LEAST = ("bench_least_pvm", "bench_least_svm")  # makers that do by themselves what has to be done
_PLANS = 64
_CALLS = ("colo_cmp_pvm", "colo_cmp_svm", "colo_mir_cli", "colo_mir_link", "colo_mir_svm")
_CALIBRATION_RUNS = 20_000
_CALIBRATIONS = 5


class Kind(enum.IntEnum):
    """``enum bench_kind``: what changes from frame to frame."""

    AS_IS = 0
    TCP = 1
    DGRAM = 2


class _Plan(ctypes.Structure):
    """``struct bench_plan``."""

    _fields_: ClassVar = [
        ("n", ctypes.c_uint64),
        ("flows", ctypes.c_uint32),
        ("shift", ctypes.c_uint32),
        ("seq", ctypes.c_uint32),
        ("step", ctypes.c_uint32),
        ("ack", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("callee", ctypes.c_uint32),
        ("inbound", ctypes.c_uint32),
        ("vni", ctypes.c_uint32),
        ("peer", ctypes.c_uint32),
        ("tag", ctypes.c_uint32),
        ("lines", ctypes.c_uint32),
        ("key", abi.FlowKey),
        ("first", ctypes.c_uint32),
        ("tap", ctypes.c_uint32),
    ]


@dataclass(frozen=True, slots=True)
class Spent:
    """Run time of one program over some work."""

    ns: int
    runs: int

    def __add__(self, other: Spent) -> Spent:
        """Both together."""
        return Spent(self.ns + other.ns, self.runs + other.runs)

    def __sub__(self, earlier: Spent) -> Spent:
        """What came since."""
        return Spent(self.ns - earlier.ns, self.runs - earlier.runs)

    @property
    def each_ns(self) -> float:
        """NaN if it did not run."""
        return self.ns / self.runs if self.runs else float("nan")


def _so_far(fd: int) -> Spent:
    info = program_info(fd)
    return Spent(info.run_time_ns, info.runs)


def spent_by(fds: Iterable[int], work: Callable[[], None]) -> Spent:
    """Run time of some programs over some work, while `run_time_kept`."""
    fds = list(fds)
    before = sum(map(_so_far, fds), Spent(0, 0))
    work()
    return sum(map(_so_far, fds), Spent(0, 0)) - before


@dataclass(frozen=True, slots=True)
class Template:
    """A frame, and what is made of it. Sequence numbers advance by `step` from turn to turn."""

    frame: bytes
    kind: Kind = Kind.TCP
    seq: int = ISN + 1
    step: int = 0
    ack: int = CLIENT_ISN + 1
    inbound: bool = False


def segment(payload_bytes: int) -> Template:
    """Data of an accepted connection."""
    body = bytes(n * 37 % 251 for n in range(payload_bytes))
    return Template(frames.of_vm(ISN + 1, body, CLIENT_ISN + 1), step=payload_bytes)


def accept() -> Template:
    """The VM's SYN-ACK."""
    flags = frames.SYN | frames.ACK
    options = b"\x01\x03\x03\x02"  # window scale
    frame = frames.of_vm(ISN, ack=CLIENT_ISN + 1, flags=flags, options=options)
    return Template(frame, seq=ISN)


def of_client(body: bytes = b"", options: bytes = b"") -> Template:
    """The client's answer to it, or its data behind that."""
    frame = frames.of_client(CLIENT_ISN + 1, body, ISN + 1, options=options)
    return Template(frame, seq=CLIENT_ISN + 1, step=len(body), ack=ISN + 1, inbound=True)


def _portions(count: int) -> Iterator[int]:
    """Frames to be made at once, for so many in all."""
    for start in range(0, count, _AT_ONCE):
        yield min(_AT_ONCE, count - start)


class Driver:
    """The makers of one plane. Inside the plane's namespace only."""

    def __init__(self, where: bed.LoadedPlane) -> None:
        self._where = where
        plane, sizes = where.plane, where.spec.sizes
        source = loader.source_directory() / "bench" / "bench.c"
        names = (*_MAKERS, "bench_look", *LEAST)
        self._module = loader.load_one(source, names, where.pins, sizes, where.spec.cache)
        calls = RawMap(self._module.maps["bench_calls"])
        for number, name in enumerate(_CALLS, 1):
            fd = plane.programs[name]
            calls.set(struct.pack("=I", number), struct.pack("=I", fd))
        self._plans = RawMap(self._module.maps["bench_plans"])
        self._used = 0
        self._ifindex = netdev.index_of(where.spec.nics[0].tap)
        self.programs = plane.programs | self._module.programs
        self.tag = 1

    def close(self) -> None:
        """Unload the makers."""
        self._module.close()

    def stream(self, program: str, template: Template, flows: int = 1, first: int = 0) -> Stream:
        """Frames for `program`, over a power of two of connections, numbered from `first` on."""
        maker = "bench_link" if program in ("colo_cmp_svm", "colo_mir_link") else "bench_run"
        return self._stream(maker, program, template, self._plan(flows, first))

    def bare(self, maker: str, template: Template) -> Stream:
        """Frames for nobody, as `maker` makes them."""
        return self._stream(maker, "", template, self._plan())

    def look(self, flows: int, lines: int) -> Stream:
        """Nothing but a look-up in the flow table, and reading so many lines of the entry."""
        return self._stream("bench_look", "", segment(0), self._plan(flows, lines=lines))

    def least(self, maker: str, template: Template) -> Stream:
        """One of `LEAST`."""
        return self._stream(maker, "", template, self._plan())

    @staticmethod
    def _plan(flows: int = 1, first: int = 0, lines: int = 0) -> _Plan:
        if flows & (flows - 1):
            raise BenchError(f"{flows} flows: not a power of two")
        return _Plan(flows=flows, first=first, shift=flows.bit_length() - 1, lines=lines)

    def _stream(self, maker: str, program: str, template: Template, plan: _Plan) -> Stream:
        plan.seq, plan.step, plan.ack = template.seq, template.step, template.ack
        plan.kind, plan.inbound = template.kind, template.inbound
        plan.callee = _CALLS.index(program) + 1 if program else 0
        plan.tap = self._ifindex
        plan.vni = bed.VNI * abi.NICS
        (plan.peer,) = struct.unpack("!I", bytes(map(int, bed.PEER.split("."))))
        for words, address in ((plan.key.vm, frames.VM), (plan.key.client, frames.CLIENT)):
            words[2] = 0xFFFF0000
            (words[3],) = struct.unpack("=I", bytes(map(int, address.split("."))))
        number = self._used % _PLANS
        self._used += 1
        context = struct.pack("=13I", *(0,) * 10, self._ifindex, 0, number)
        runner = Runner(self.programs[maker], template.frame, context)
        return Stream(self, maker, number, plan, runner)

    def set_plan(self, number: int, plan: _Plan) -> None:
        """What the maker does from its next frame on."""
        plan.tag = self.tag
        self._plans.set(struct.pack("=I", number), bytes(plan))

    def spent(self, work: Callable[[], object], *programs: str) -> dict[str, Spent]:
        """Run time of the makers, with what they call, and of other programs, over some work."""
        names = (*_MAKERS, "bench_look", *LEAST, *programs)
        with run_time_kept():
            before = {name: _so_far(self.programs[name]) for name in names}
            work()
            return {name: _so_far(self.programs[name]) - before[name] for name in names}

    def own_ns(self, maker: str, template: Template) -> float:
        """What the maker costs for a frame of this template with no program behind it."""
        stream = self.bare(maker, template)
        stream.run(BLOCK)  # warm
        found = []
        for _ in range(_CALIBRATIONS):
            spent = self.spent(lambda: stream.run(_CALIBRATION_RUNS // _CALIBRATIONS))
            found.append(spent[maker].each_ns)
        return min(found)

    def connect(self, flows: int, first: int = 0) -> None:
        """Both VMs accept so many connections, numbered from `first` on, and each client knows."""
        before = self._where.count("cmp-pvm", "pass", "verified")
        streams = (
            self.stream("colo_cmp_svm", accept(), flows, first),
            self.stream("colo_cmp_pvm", accept(), flows, first),
            self.stream("colo_mir_cli", of_client(), flows, first),
        )
        for portion in _portions(flows):
            for stream in streams:
                stream.run(portion)
        passed = self._where.count("cmp-pvm", "pass", "verified") - before
        require_all(self._where, passed, flows, "connections that both accept")


def carried_out(where: bed.LoadedPlane) -> int:
    """Held frames that the SVM's stood for, or carried."""
    return sum(where.count("drain", "carry", why) for why in ("whole", "carried"))


def require_all(where: bed.LoadedPlane, found: int, wanted: int, what: str) -> None:
    """BenchError, with what became of all frames, unless each was counted under its path."""
    if found != wanted:
        rows = [row for row in where.plane.counters() if row.packets]
        fates = ", ".join(f"{r.program} {r.verdict} {r.reason} {r.packets}" for r in rows)
        raise BenchError(f"{what}: {found} of {wanted} frames: {fates}")


class Stream:
    """Frames of one template on their way to one program."""

    def __init__(
        self, driver: Driver, maker: str, number: int, plan: _Plan, runner: Runner
    ) -> None:
        self.maker = maker
        self._driver, self._number, self._plan, self._runner = driver, number, plan, runner
        self.wall_ns = 0  # with what the kernel did between the runs
        self.made = 0
        driver.set_plan(number, plan)

    def retag(self) -> None:
        """The driver's tag has changed: frames of another epoch."""
        self._plan.n = self.made
        self._driver.set_plan(self._number, self._plan)

    def run(self, count: int = BLOCK) -> None:
        """The next `count` frames."""
        self.wall_ns += self._runner.run(count) * count
        self.made += count

    def run_all(self, count: int) -> None:
        """Many frames, in several calls."""
        for portion in _portions(count):
            self.run(portion)


def in_turn(first: Stream, second: Stream, count: int, until: float | None = None) -> int:
    """About `count` frames of each, a block of one after a block of the other; stops at `until`
    (of time.monotonic). Returns how many of each were made."""
    for made in range(0, count, BLOCK):
        if until is not None and time.monotonic() > until:
            return made
        first.run()
        second.run()
    return -(-count // BLOCK) * BLOCK
