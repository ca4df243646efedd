# SPDX-License-Identifier: GPL-2.0-only
"""The lane of the shipped data planes with nothing compared and nothing held.

What it reaches is the limit for any comparer on this machine: two servers, the input mirrored, the
SVM's output over the link, and a frame leaves when its twin could be there. `bpf/bench/limit.c`
takes the place of the primary's programs; the secondary's are the shipped ones.
"""

from __future__ import annotations

from dataclasses import replace

from colo_ebpf.bench import names
from colo_ebpf.bench.lanes.lane import HOST
from colo_ebpf.bench.lanes.ours import OurLane
from colo_ebpf.datapath.bpf import loader
from colo_ebpf.datapath.wiring import filters_of
from colo_ebpf.model import VmRole

_INSTEAD = {
    "colo_cmp_pvm": "limit_pvm",
    "colo_mir_cli": "limit_cli",
    "colo_cmp_svm": "limit_svm",
}


class LimitLane(OurLane):
    """As ours, but for three programs on the primary's host."""

    name = names.LIMIT

    def _attach(self) -> None:
        super()._attach()
        spec = self._spec(HOST)
        pins = loader.pin_directory(spec.bpffs, spec.vm)
        source = loader.source_directory() / "bench" / "limit.c"
        programs = tuple(_INSTEAD.values())

        def replace_ours() -> None:
            module = loader.load_one(source, programs, pins, spec.sizes, spec.cache)
            for one in filters_of(spec, VmRole.PRIMARY):
                if other := _INSTEAD.get(one.program):
                    fd = module.programs[other]
                    self.planes[HOST].wiring.attach(replace(one, program=other), fd)
            module.close()  # what is attached lives on

        self.wires.inside(HOST, replace_ours)
