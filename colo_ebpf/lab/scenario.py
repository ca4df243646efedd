# SPDX-License-Identifier: GPL-2.0-only
"""The faults of the demo: what is broken, who must go on, what happens to the loser later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from colo_ebpf.lab import faults, processes
from colo_ebpf.lab.lab import Lab


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault."""

    what: str
    inject: Callable[[Lab], object]
    survivor: str
    later: Callable[[Lab], object] | None = None  # once the client is served again

    @property
    def loser(self) -> str:
        """The other host."""
        return "b" if self.survivor == "a" else "a"


def _continue_a(lab: Lab) -> None:
    processes.resume(lab.places["a"].namespace)


SCENARIOS = {
    "host-kill": Scenario("host a is killed", lambda lab: faults.kill(lab, "a", "host"), "b"),
    "vm-kill": Scenario("the VM on a is killed", lambda lab: faults.kill(lab, "a", "vm"), "b"),
    "host-hang": Scenario(
        "host a hangs", lambda lab: faults.hang(lab, "a", "host"), "b", _continue_a
    ),
    "link-cut": Scenario("the link is cut", lambda lab: faults.cut(lab, "link"), "a"),
    "secondary-kill": Scenario("host b is killed", lambda lab: faults.kill(lab, "b", "host"), "a"),
}
