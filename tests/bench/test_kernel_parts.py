# SPDX-License-Identifier: GPL-2.0-only
"""A tiny run of the parts about the programs in the kernel: every row is there, nothing is left.

That frames were compared is what the parts themselves insist on: they raise BenchError otherwise.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo_ebpf.bench.kernel import grown_hosts, gso, names, part_alone, part_growth, part_programs
from colo_ebpf.bench.kernel.driver import Driver, segment
from colo_ebpf.bench.results import Recorder, Results
from colo_ebpf.datapath.bpf import loader
from colo_ebpf.datapath.net import namespaces
from colo_ebpf.errors import BenchError
from colo_ebpf.lab.bed import Bed
from tests.capabilities import require

_ALONE = part_alone.Scale(rounds=1, frames=512, wire_frames=256)
_PROGRAMS = part_programs.Scale(rounds=1, frames=64, payloads=(64,), large=gso.Scale(1, 2, (2, 44)))
_GROWTH = part_growth.Scale(
    rounds=1,
    frames=256,
    flows=(1, 4096),
    payloads=(64,),
    held=(1, 100),
    hosts=grown_hosts.Scale(rounds=1, seconds=0.1, frames=256, epochs=(0, 100), vms=(1, 2)),
)


@pytest.fixture(autouse=True)
def _needs_and_leaves_nothing() -> Iterator[None]:
    require("root", "bpf", "qemu")
    before = _there()
    yield
    assert _there() - before == set()


def _there() -> set[str]:
    """What a run makes and has to remove; its names carry the pid."""
    mine = f"colob{os.getpid()}"
    found = {name for name in namespaces.names() if mine in name}
    found |= {
        line for line in Path("/proc/self/mounts").read_text().splitlines() if "colo-bench" in line
    }
    found |= {line for line in Path("/proc/self/mounts").read_text().splitlines() if mine in line}
    found |= {link for link in _descriptors() if "bpf-stats" in link}
    for task in Path("/proc/self/task").glob("*/children"):
        found |= {f"process {pid}" for pid in task.read_text().split()}
    return found


def _descriptors() -> Iterator[str]:
    """What is open. Others keep run times at the same time: the kernel's own word is about all."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            yield os.readlink(f"/proc/self/fd/{fd}")


def _run(part: object, scale: object) -> Results:
    recorder = Recorder(lambda _: None)
    part.measure(recorder, scale)  # type: ignore[attr-defined]
    return recorder.results(quick=True)


def _all_have_figures(found: Results, optional: str = "") -> None:
    empty = [row for row in found.rows if not row.values and row.measure != optional]
    assert empty == []
    for row in found.rows:
        if row.unit != "calls" and row.lane != names.MACHINE:  # other programs run there, too
            assert min(row.values, default=1) > 0, row


def test_alone() -> None:
    found = _run(part_alone, _ALONE)
    lanes = {(row.measure, row.lane) for row in found.rows}
    measures = [names.compare(size, order) for size in names.PAYLOADS for order in names.ORDERS]
    wanted = {*measures, *map(names.wall, measures)}
    limited = {m for m in wanted if names.PVM_FIRST in m}
    assert lanes == {
        *((m, lane) for m in wanted for lane in (names.QEMU, names.OURS, names.WIRE)),
        *((m, names.LEAST) for m in limited),
    }
    _all_have_figures(found)
    assert all("all compared and let out" in r.note for r in found.rows if r.measure in measures)


def test_programs() -> None:
    found = _run(part_programs, _PROGRAMS)
    costs = {row.lane for row in found.rows if row.measure == names.COST}
    steps = [step for case in part_programs.cases((64,)) for step in case.steps]
    assert costs >= {step.path for step in steps}
    short = (names.NOTED, names.PASSES, names.HELD, names.CARRIES)
    long = (names.NOTED, names.PASSES, names.PARKED, names.VERIFIES, names.ROUNDS)
    assert costs >= {names.sized(what, 2 * gso.MSS) for what in short}
    assert costs >= {names.sized(what, 44 * gso.MSS) for what in long}
    for measure in (names.INSTRUCTIONS, names.VERIFIED, names.MACHINE_CODE):
        programs = {row.lane for row in found.rows if row.measure == measure}
        assert programs == {one for source in loader.PROGRAMS.values() for one in source}
    assert {r.lane for r in found.rows if r.measure == names.LOAD} == set(loader.PROGRAMS)
    maps = {row.lane for row in found.rows if row.measure == names.MEMORY}
    assert maps >= {"colo_flows", "colo_hold", "colo_frames", names.TOTAL}
    looked = {row.lane for row in found.rows if row.measure == names.LOOKUPS}
    assert looked == {step.path for step in steps}
    _all_have_figures(found, optional=names.LOOKUPS)


def test_growth() -> None:
    found = _run(part_growth, _GROWTH)
    lines = {(curve.plot, curve.line): curve for curve in found.curves}
    assert lines.keys() == {
        (names.FLOWS, names.both(64)),
        (names.FLOWS, names.less_look(names.both(64))),
        (names.FLOWS, names.LOOK),
        (names.FLOWS, names.LOOK_LINES),
        (names.HELD_FRAMES, names.ELSEWHERE),
        (names.HELD_FRAMES, names.BEHIND),
        (names.EPOCHS, names.both(1448)),
        (names.VMS, names.both(1448)),
    }
    for (what, line), curve in lines.items():
        assert found.row("growth", names.growth(what, line), names.OURS) is not None
        assert len(curve.points) == 2
    assert found.row("growth", names.LOAD_VM, names.OURS) is not None
    assert found.row("growth", names.MEMORY_VM, names.OURS) is not None
    _all_have_figures(found, optional=names.CORES)


def test_a_frame_that_is_not_compared_is_no_figure() -> None:
    """The counters are looked at: with the SVM's copy missing there is nothing to report."""
    with Bed(f"colob{os.getpid()}", loader.Sizes(64, 256, 64)) as bed:

        def look() -> None:
            driver = Driver(bed)
            bed.empty()
            bed.pair()
            driver.connect(1)
            driver.stream("colo_cmp_pvm", segment(64)).run(32)
            with pytest.raises(BenchError, match=r"let out: 0 of 32 frames: .*hold unverified 32"):
                part_alone.check(bed, names.PVM_FIRST, 0, 32)
            driver.close()

        namespaces.run_in(bed.host, look)
