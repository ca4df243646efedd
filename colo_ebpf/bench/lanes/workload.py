# SPDX-License-Identifier: GPL-2.0-only
"""The loads, what they find, and the C programs behind them."""

from __future__ import annotations

import subprocess
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from colo_ebpf.bench import names
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.topology import DEFAULT_GUEST_ADDRESS

PROGRAMS = ("serve", "load", "beside")
_CHUNK_BYTES = 8 << 20
_PATIENCE_S = 40.0  # beyond the load's own time; opening 10,000 connections may take up to 20 s


@dataclass(frozen=True, slots=True)
class Load:
    """One way to use the server. `seconds` is how long it goes on."""

    name: str
    mode: str
    arguments: tuple[int, ...]  # of the program `load`; 0 stands for the time in ms
    unit: str
    percentiles: bool = False
    awake: bool = False  # with the CPUs kept from sleeping

    def argv(self, seconds: float) -> list[str]:
        """For the program `load`."""
        ms = max(1, int(seconds * 1000))
        values = [str(one or ms) for one in self.arguments]
        tail = ["0"] if self.mode in ("connect", "refused") else []
        return [self.mode, DEFAULT_GUEST_ADDRESS, *values, *tail]


def _requests(name: str, port: int, size: int, connections: int = 1, awake: bool = False) -> Load:
    few = connections == 1
    return Load(name, "rr", (port, size, connections, 0), "/s", percentiles=few, awake=awake)


DOWNLOAD = Load(names.BULK_DOWNLOAD, "down", (_CHUNK_BYTES, 0), "MB/s")
UPLOAD = Load(names.BULK_UPLOAD, "up", (_CHUNK_BYTES, 0), "MB/s")
REQUEST = _requests(names.REQUEST_1B, 7001, 1)
LIMITED = (  # of a target
    names.BULK_DOWNLOAD,
    names.REQUEST_1B,
    names.REQUEST_AWAKE,
    names.CONNECTIONS,
    names.UDP_8,
)
LOADS = (
    DOWNLOAD,
    UPLOAD,
    REQUEST,
    _requests(names.REQUEST_AWAKE, 7001, 1, awake=True),
    _requests(names.REQUEST_1KB, 7002, 1024),
    _requests(names.REQUEST_64KB, 7003, 65536),
    Load(names.CONNECTIONS, "connect", (1, 0), "/s", percentiles=True),
    Load(names.CONNECTIONS_16, "connect", (16, 0), "/s"),
    Load(names.REFUSED, "refused", (16, 0), "/s"),
    Load(names.UDP_1, "udp", (64, 1, 0), "/s", percentiles=True),
    Load(names.UDP_8, "udp", (64, 8, 0), "/s"),
    *(_requests(names.MANY.format(count), 7100, 100, count) for count in (1, 100, 10_000)),
)


class _Line(msgspec.Struct, frozen=True):
    """The line the program `load` prints."""

    operations: int
    ns: int
    bytes: int
    failed: int
    stalled: int
    opened: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of a load found."""

    operations: int
    took_ns: int
    bytes: int  # of payload, in one direction
    failed: int
    stalled: int  # operations given up on
    opened: int  # connections
    times_ns: Sequence[int]  # of each operation, sorted

    @property
    def whole(self) -> bool:
        """Everything was answered."""
        return not self.failed and not self.stalled and self.operations > 0

    @property
    def wedged(self) -> bool:
        """Nothing moved any more: its rate is that of giving up."""
        return self.stalled > 0 and self.stalled >= self.opened

    def value(self, unit: str) -> float:
        """The load's main figure."""
        if unit == "MB/s":
            return self.bytes / self.took_ns * 1e3
        return self.operations / self.took_ns * 1e9

    def percentile_us(self, fraction: float) -> float | None:
        """None if nothing was answered."""
        return percentile(self.times_ns, fraction) / 1e3 if self.times_ns else None

    def trouble(self) -> str:
        """What was not as it should be; empty: nothing."""
        said = []
        if self.stalled:
            said.append(f"{self.stalled} stalled")
        if self.failed:
            said.append(f"{self.failed} failed")
        return ", ".join(said)


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Of sorted values, interpolated; `fraction` from 0 to 1."""
    place = fraction * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def distribution(ordered: Sequence[int], points: int = 100) -> tuple[tuple[float, float], ...]:
    """(microseconds, share that took no longer): even steps, and finer ones towards the end."""
    if not ordered:
        return ()
    shares = [step / points for step in range(points)] + [0.995, 0.999, 0.9995, 0.9999, 1.0]
    return tuple((percentile(ordered, share) / 1e3, share) for share in shares)


def parse(said: bytes) -> Outcome:
    """The output of the program `load`. Raises BenchError."""
    line, _, rest = said.partition(b"\n")
    times = array("I")
    try:
        found = msgspec.json.decode(line, type=_Line)
        times.frombytes(rest)
    except (msgspec.MsgspecError, ValueError) as e:
        raise BenchError(f"the load said {said[:100]!r}: {e}") from e
    if len(times) != found.operations:
        raise BenchError(f"the load was cut short: {len(times)} of {found.operations} times")
    return Outcome(
        found.operations,
        found.ns,
        found.bytes,
        found.failed,
        found.stalled,
        found.opened,
        sorted(times),
    )


def build(directory: Path, programs: Sequence[str] = PROGRAMS) -> None:
    """Compile programs into a directory. Raises BenchError."""
    for name in programs:
        source = Path(__file__).parents[1] / "native" / f"{name}.c"
        argv = ["gcc", "-O2", "-Wall", "-o", str(directory / name), str(source)]
        try:
            subprocess.run(argv, check=True, capture_output=True, text=True)
        except FileNotFoundError as e:
            raise BenchError("gcc is not installed: the loads cannot be compiled") from e
        except subprocess.CalledProcessError as e:
            raise BenchError(f"{source}: does not compile:\n{e.stderr[-2000:]}") from e


def enter(namespace: str) -> list[str]:
    """Words before a command that put it into a network namespace, and only that."""
    return ["nsenter", f"--net=/run/netns/{namespace}"]


def run(program: Path, namespace: str, argv: Sequence[str], seconds: float) -> Outcome:
    """One run of the program `load`. Raises BenchError."""
    command = [*enter(namespace), str(program), *argv]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=seconds + _PATIENCE_S,
        )
    except subprocess.CalledProcessError as e:
        text = e.stderr.decode(errors="replace").strip()
        raise BenchError(f"load {' '.join(argv)}: exit {e.returncode}: {text}") from e
    except subprocess.TimeoutExpired as e:
        raise BenchError(f"load {' '.join(argv)}: does not end") from e
    return parse(done.stdout)
