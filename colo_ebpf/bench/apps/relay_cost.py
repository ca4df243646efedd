# SPDX-License-Identifier: GPL-2.0-only
"""What the relay of lane lockstep takes of its figures: one VM, with it and without it in turn."""

from __future__ import annotations

from collections import defaultdict

from colo_ebpf.bench.apps import names
from colo_ebpf.bench.apps.lane_lockstep import LockstepLane
from colo_ebpf.bench.apps.loads import chosen
from colo_ebpf.bench.apps.rounds import first_line
from colo_ebpf.bench.results import Recorder
from colo_ebpf.errors import ColoError
from colo_ebpf.lab.topology import HOSTS, Guest

LOAD = chosen("get-1")[0]  # nothing waits more often


async def measure(
    recorder: Recorder, name: str, guest: Guest, readings: int, seconds: float
) -> None:
    """Rows of both, in a lab of this name."""
    recorder.say(f"{names.PART}: the relay's own cost")
    lane, note = LockstepLane(name, guest, HOSTS[:1]), ""
    found: dict[str, list[float]] = defaultdict(list)
    try:
        async with lane.running():
            for _ in range(readings):
                for way, where in ((names.DIRECT, lane.direct), (names.RELAYED, lane.where)):
                    found[way].append((await LOAD.run(where, seconds)).rate)
    except ColoError as e:
        note = names.BROKE + first_line(e)
    for way in (names.DIRECT, names.RELAYED):
        measure = names.RELAY.format(LOAD.name)
        recorder.add(names.PART, measure, way, LOAD.unit, values=found[way], note=note)
