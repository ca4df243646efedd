# SPDX-License-Identifier: GPL-2.0-only
"""The lane of the shipped data planes with nothing compared and nothing held.

What it reaches is the limit for any comparer on this machine: two servers, the input mirrored, the
SVM's output over the link, and a frame leaves when its twin could be there. `bpf/limit.c` takes the
place of the primary's programs; the secondary's are the shipped ones.
"""

from __future__ import annotations

from colo_ebpf.bench import names
from colo_ebpf.bench.lane import HOST
from colo_ebpf.bench.lane_ours import OurLane
from colo_ebpf.datapath import loader, tc
from colo_ebpf.lab.topology import LINK_DEVICE, TAP

_HOOKS = (
    (TAP, tc.INGRESS, "limit_pvm"),
    (TAP, tc.EGRESS, "limit_cli"),
    (LINK_DEVICE, tc.INGRESS, "limit_svm"),
)


class LimitLane(OurLane):
    """As ours, but for three programs on the primary's host."""

    name = names.LIMIT

    def _attach(self) -> None:
        super()._attach()
        spec = self._spec(HOST)
        pins = loader.pin_directory(spec.bpffs, spec.vm)
        source = loader.source_directory() / "limit.c"
        programs = tuple(program for _, _, program in _HOOKS)

        def replace() -> None:
            module = loader.load_one(source, programs, pins, spec.sizes, spec.cache)
            for device, hook, program in _HOOKS:
                tc.attach(device, hook, program, module.programs[program])
            module.close()  # what is attached lives on

        self.wires.inside(HOST, replace)
