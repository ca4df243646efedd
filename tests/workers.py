# SPDX-License-Identifier: GPL-2.0-only
"""Which worker of pytest-xdist runs what.

A worker gets a file at a time, or all files that belong together. Real VMs wait for each other more
than they compute. So there may be a worker more than processors: the last of three and more runs
nothing with VMs in it, and only when no other worker wants the processor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xdist.scheduler import LoadScopeScheduling

_TOGETHER = {  # by directory: they use fixed ports, or share rigs
    "qemu": "qemu",
    "bpf": "rigs",
    "model": "rigs",
}
_COMPUTES = ("rigs", "tests/sim/", "tests/storage/", "tests/unit/")  # and starts no VM
_FEWEST, _NICE = 3, 5


def is_beside(worker: str, count: int) -> bool:
    """Whether this one (gw0, gw1, ...) of so many runs what only computes."""
    return count >= _FEWEST and worker == f"gw{count - 1}"


def step_back(workerinput: Mapping[str, Any]) -> None:
    """For the worker that is beside the others: its processes, too, let them go first."""
    if is_beside(workerinput["workerid"], workerinput["workercount"]):
        os.nice(_NICE)


class ByFile(LoadScopeScheduling):
    """Files with VMs first; what only computes is left to the worker beside, as far as it gets."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return _TOGETHER.get(file.parent.name, str(file))

    def _assign_work_unit(self, node: Any) -> None:
        beside = is_beside(node.gateway.id, self.numnodes)
        computes = [scope for scope in self.workqueue if scope.startswith(_COMPUTES)]
        others = [scope for scope in self.workqueue if scope not in computes]
        mine = computes if beside else [*others, *computes]
        if not mine:
            node.shutdown()
            return
        self.workqueue.move_to_end(mine[0], last=False)
        super()._assign_work_unit(node)
